//! Time and turns of a simulation: tasks that one thread takes further in an order drawn from a seed, and a clock that
//! moves only when nobody can go on. The same seed gives the same story, down to the hash of its trace.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// How long a task may be away in real time (one chore looks at the file system) before the simulation is stuck.
const AWAY: Duration = Duration::from_secs(30);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks that can go on.
#[derive(Default)]
struct Ready {
    list: Mutex<Vec<usize>>,
    bell: Condvar,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, task: usize) {
        let mut list = self.lock();
        if !list.contains(&task) {
            list.push(task);
        }
        self.bell.notify_all();
    }
}

struct Bell {
    task: usize,
    ready: Arc<Ready>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ready.push(self.task);
    }
}

struct State {
    /// Microseconds since the beginning.
    now: u64,
    random: u64,
    next_task: usize,
    next_timer: u64,
    current: usize,
    born: Vec<(usize, Task)>,
    due: BinaryHeap<Reverse<(u64, u64)>>,
    timers: BTreeMap<u64, (usize, Waker)>,
    /// FNV-1a of everything that was told.
    hash: u64,
    told: u64,
    /// The last line, for its room.
    line: String,
    aloud: bool,
    violations: Vec<String>,
}

/// A simulation. Cheap to clone.
#[derive(Clone)]
pub struct Sim {
    state: Arc<Mutex<State>>,
    ready: Arc<Ready>,
}

impl Sim {
    /// A simulation from a seed; `aloud` prints its trace.
    pub fn new(seed: u64, aloud: bool) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                now: 0,
                random: seed,
                next_task: 0,
                next_timer: 0,
                current: 0,
                born: Vec::new(),
                due: BinaryHeap::new(),
                timers: BTreeMap::new(),
                hash: 0xcbf2_9ce4_8422_2325,
                told: 0,
                line: String::new(),
                aloud,
                violations: Vec::new(),
            })),
            ready: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the beginning.
    pub fn now(&self) -> Duration {
        Duration::from_micros(self.lock().now)
    }

    /// A number below `limit` (splitmix64).
    pub fn draw(&self, limit: u64) -> u64 {
        let mut state = self.lock();
        state.random = state.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }

    /// Whether something happens that happens `of_thousand` times in a thousand.
    pub fn happens(&self, of_thousand: u64) -> bool {
        of_thousand > 0 && self.draw(1_000) < of_thousand
    }

    /// A span from one to the other, in milliseconds.
    pub fn span(&self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from * 1_000 + self.draw((to - from).max(1) * 1_000))
    }

    /// Lets a span pass.
    pub fn sleep(&self, span: Duration) -> Sleep {
        Sleep {
            sim: self.clone(),
            span: Some(span),
            timer: 0,
        }
    }

    /// Adds a line to the trace.
    pub fn tell(&self, line: impl Display) {
        use std::fmt::Write as _;
        let mut state = self.lock();
        let (now, mut line_of) = (state.now, std::mem::take(&mut state.line));
        line_of.clear();
        let _ = write!(line_of, "{now:>12} {line}");
        let line = line_of;
        for byte in line.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        state.told += 1;
        if state.aloud {
            println!("{line}");
        }
        state.line = line;
    }

    /// Notes that a rule was broken.
    pub fn accuse(&self, what: impl Display) {
        self.tell(format_args!("BROKEN {what}"));
        self.lock().violations.push(what.to_string());
    }

    /// The rules that were broken so far.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// Hash and length of the trace.
    pub fn trace(&self) -> (u64, u64) {
        let state = self.lock();
        (state.hash, state.told)
    }

    /// Adds a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.lock();
        let id = state.next_task;
        state.next_task += 1;
        state.born.push((id, Box::pin(task)));
        drop(state);
        self.ready.push(id);
    }

    /// Runs tasks until one of them says that it is `over`, a rule is broken, or nobody can go on any more.
    pub fn run(&self, over: impl Fn() -> bool) {
        let mut tasks: BTreeMap<usize, Task> = BTreeMap::new();
        while !over() && self.lock().violations.is_empty() {
            tasks.extend(std::mem::take(&mut self.lock().born));
            let Some(id) = self.next_ready() else {
                if !self.move_clock() {
                    return;
                }
                continue;
            };
            let Some(task) = tasks.get_mut(&id) else { continue };
            self.lock().current = id;
            let waker = Waker::from(Arc::new(Bell {
                task: id,
                ready: self.ready.clone(),
            }));
            let mut context = Context::from_waker(&waker);
            let mut done = task.as_mut().poll(&mut context);
            while done.is_pending() && !self.waits(id) {
                self.await_outside(id);
                done = task.as_mut().poll(&mut context);
            }
            if done.is_ready() {
                tasks.remove(&id);
            }
        }
    }

    /// Whether a task waits for time to pass.
    fn waits(&self, id: usize) -> bool {
        self.lock().timers.values().any(|(task, _)| *task == id)
    }

    fn next_ready(&self) -> Option<usize> {
        let count = self.ready.lock().len() as u64;
        let at = (count > 0).then(|| self.draw(count))?;
        let mut list = self.ready.lock();
        list.sort_unstable();
        Some(list.remove(usize::try_from(at).unwrap_or(0)))
    }

    /// A task that does not wait for time waits for the machine: so does everybody, and it goes on first, so that the
    /// order is the same however quick the machine is.
    fn await_outside(&self, id: usize) {
        let mut list = self.ready.lock();
        loop {
            if let Some(at) = list.iter().position(|ready| *ready == id) {
                list.remove(at);
                return;
            }
            let (back, limit) = self
                .ready
                .bell
                .wait_timeout(list, AWAY)
                .unwrap_or_else(PoisonError::into_inner);
            assert!(!limit.timed_out(), "task {id} waits for what never comes");
            list = back;
        }
    }

    fn move_clock(&self) -> bool {
        let mut state = self.lock();
        while let Some(Reverse((at, timer))) = state.due.pop() {
            if let Some((_, waker)) = state.timers.remove(&timer) {
                state.now = state.now.max(at);
                drop(state);
                waker.wake();
                return true;
            }
        }
        false
    }
}

/// A span that passes.
pub struct Sleep {
    sim: Sim,
    span: Option<Duration>,
    timer: u64,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let sim = self.sim.clone();
        let mut state = sim.lock();
        if let Some(span) = self.span.take() {
            self.timer = state.next_timer;
            state.next_timer += 1;
            let at = state.now + u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 2);
            state.due.push(Reverse((at, self.timer)));
        } else if !state.timers.contains_key(&self.timer) {
            return Poll::Ready(());
        }
        let entry = (state.current, context.waker().clone());
        state.timers.insert(self.timer, entry);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if self.span.is_none() {
            self.sim.lock().timers.remove(&self.timer);
        }
    }
}
