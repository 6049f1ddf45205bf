# Supervises one execution. Started by supervisor.rs as the leader of its own session and as a subreaper,
# so every orphan among its descendants becomes its child and nothing can leave it, setsid included.
#
# stdin:  a socket: the environment of the command comes in, "started" goes out
# stdout: the control FIFO, open for reading and writing
# stderr: the lock file; whoever has it open IS this execution, so no other process may inherit it
# $1: lifetime in seconds or ''   $2: limit of a process's data in KiB or ''   $3: the kernel's OOM count
# then the command. The working directory is the execution's. No secret is in argv or in this environment.
#
# For dash, bash and busybox. Files are made by `true >`, not by `: >`: a redirection that fails, on a full disk, ends
# the shell when the builtin is a special one.

exec 7<&0 8>&1 9>&2 </dev/null >/dev/null 2>>notes || exit 70
# Handlers, not ignored dispositions: a handler is reset for children, so the command has the defaults.
trap : HUP INT QUIT PIPE ALRM TERM USR1 USR2
lifetime=$1 memory=$2 oom_before=$3
shift 3

# A starter that died half way sent no last line: then nothing has happened and start works again.
environment=$(cat <&7 8>&- 9>&-)
case $environment in
*'
: complete') ;;
*) exit 71 ;;
esac
setsid=$(command -v setsid)

# --- The watchdog: the only one that signals the command. Sleeps in read, not in a loop.

same() { # whether the command is still the process it was; a stat that cannot be parsed counts as yes
    line=
    { read -r line <"/proc/$main/stat"; } 2>/dev/null || return 1
    case $line in *') '*) ;; *) return 0 ;; esac
    set -- ${line##*) }
    [ "${20}" = "$born" ]
}

interrupt() {
    [ -n "$main" ] && same || return
    kill -s INT -- "-$main" 2>/dev/null || kill -s INT "$main" 2>/dev/null
}

end() {
    [ -n "$main" ] && same && kill -s KILL "$main" 2>/dev/null
}

after() { # seconds, reason
    { sleep "$1" 8>&- 2>/dev/null || sleep "$((${1%.*} + 1))" 8>&-; echo "end $2" >&8; } &
}

watch() {
    trap '' HUP INT QUIT TERM
    main= born= asked= ended=
    [ -z "$lifetime" ] || after "$lifetime" lifetime
    while read -r word value more <&8; do
        case $word in
        main)
            main=$value born=$more
            [ -z "$asked" ] || interrupt
            [ -z "$ended" ] || end
            ;;
        cancel)
            [ -n "$asked" ] || { asked=1; interrupt; }
            after "$value" cancel
            ;;
        end)
            [ -n "$ended" ] || { ended=1; true >"why.$value"; }
            end
            ;;
        esac
    done
}

# --- The end: kills what the command left behind, until there is nothing.

children() {
    children=
    if [ -r "/proc/$$/task/$$/children" ]; then
        { read -r children <"/proc/$$/task/$$/children"; } 2>/dev/null
        return
    fi
    for stat in /proc/[0-9]*/stat; do # kernels built without that file
        line=
        { read -r line <"$stat"; } 2>/dev/null || continue
        set -- ${line##*) }
        [ "$2" != "$$" ] || { stat=${stat#/proc/}; children="$children ${stat%/stat}"; }
    done
}

detached() {
    { tr '\0\n' '\n ' <"/proc/$1/environ" | grep -qx 'DBTCLOUD_DETACHED=1'; } 2>/dev/null
}

sweep() {
    rounds=0 delay=0.01
    while :; do
        children
        left=
        for pid in $children; do
            detached "$pid" && continue
            kill -s KILL "$pid" 2>/dev/null
            left=1
        done
        [ -n "$left" ] || return
        rounds=$((rounds + 1))
        [ "$rounds" -lt 200 ] || delay=1
        sleep "$delay" 2>/dev/null || sleep 1 # also reaps: orphans are children that no job knows
    done
}

# --- The command.

identify() { # tells the watchdog who the command is, before it is
    read -r line </proc/self/stat
    set -- ${line##*) }
    echo "main ${line%% *} ${20}" >&8
}

# By exec: a redirection of a function keeps a copy of what it replaces, and so a copy of the lock.
(
    exec 7<&- 9>&- 2>/dev/null
    watch
) &
watchdog=$!
true >started 2>/dev/null || { kill -s KILL "$watchdog"; exit 73; }
{ echo started >&7; } 2>/dev/null
exec 7<&-
true >notes

(
    identify
    exec 8>&- 9>&- 2>>output.log
    [ -z "$memory" ] || ulimit -d "$memory"
    cd work || exit 126
    # A session of its own, so that signals to its group reach none of us.
    [ -z "$setsid" ] || set -- "$setsid" -- "$@"
    unset PWD OLDPWD SHLVL DBTCLOUD_EXECUTION PATH
    eval "$environment" # from here on a variable may be the command's
    exec "$@" >>../output.log
)
status=$?
exec 8>&-

# A shell tells a signal as 128 + n. Dash and busybox also say so on stderr, except for SIGINT and SIGPIPE, which tells
# it from an exit code of that number; bash -c says nothing, so there every such status counts as a signal.
how=code
if [ "$status" -gt 128 ] && [ "$status" -le 192 ]; then
    [ -s notes ] || [ -n "$BASH_VERSION" ] || [ "$status" -eq 130 ] || [ "$status" -eq 141 ] && how=signal
fi

kill -s KILL "$watchdog" 2>/dev/null
wait "$watchdog" 2>/dev/null
sweep

why=none
for reason in remove cancel lifetime; do
    [ ! -e "why.$reason" ] || why=$reason
done
if [ "$status.$how.$why" = 137.signal.none ]; then
    oom_now=$(grep '^oom_kill ' /proc/vmstat 2>/dev/null)
    [ "${oom_now#oom_kill }" = "$oom_before" ] || why=memory
fi

# A rename, because it needs no space on a full disk.
while [ -e ending ]; do
    true >ending
    mv ending "exit.$status.$how.$why" 2>/dev/null || sleep 1
done
