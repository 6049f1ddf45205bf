//! How soon the server is ready and how much memory it keeps while it has nothing to do, beside what one
//! `import dbt.cli.main` costs in the Python that runs its jobs.
//!
//! Ours: one process with all roles (API, scheduler, cleanup) on SQLite; from before its start to the first
//! 200 of `/readyz`, the data directory made by `bootstrap` before; memory a while after.

use std::process::Command;
use std::time::Duration;

use dbtcloud_benches::figures::{Figures, table};
use dbtcloud_benches::program;
use dbtcloud_benches::server::{self, Server};
use dbtcloud_tests::installation::{Installation, binary};

const ROUNDS: usize = 10;
/// How long the server is left alone before its memory is read.
const SETTLED: Duration = Duration::from_secs(2);
const IMPORT: &str = "import dbt.cli.main; print(open('/proc/self/smaps_rollup').read())";

fn main() {
    server::build();
    let python = server::dbt().with_file_name("python");
    let installation = Installation::new();
    // A first start of each, for the page cache.
    Server::start(&installation, &[]).0.stop();
    program::said(Command::new(&python).args(["-c", IMPORT]));

    let (mut ready, mut rss, mut pss) = (Figures::new(), Figures::new(), Figures::new());
    let (mut import, mut import_rss, mut import_pss) = (Figures::new(), Figures::new(), Figures::new());
    for _ in 0..ROUNDS {
        let (server, seconds) = Server::start(&installation, &[]);
        std::thread::sleep(SETTLED);
        let (resident, proportional) = program::memory(&server.pid().to_string());
        server.stop();
        ready.add(seconds * 1e3);
        rss.add(resident);
        pss.add(proportional);

        import.add(program::seconds(Command::new(&python).args(["-c", "import dbt.cli.main"])) * 1e3);
        let rollup = program::said(Command::new(&python).args(["-c", IMPORT]));
        let (resident, proportional) = program::parse_memory(&rollup);
        import_rss.add(resident);
        import_pss.add(proportional);
    }
    let size = std::fs::metadata(binary()).map_or(0, |meta| meta.len()) as f64 / (1024.0 * 1024.0);
    println!("idle: the server beside one Python that imported dbt, median [min–max] of {ROUNDS} pairs");
    println!("the binary has {size:.1} MiB\n");
    let row = |name: &str, ours: &Figures, theirs: &Figures| {
        vec![
            name.to_owned(),
            ours.to_string(),
            theirs.to_string(),
            ours.over(theirs).to_string(),
        ]
    };
    table(
        &["what", "server", "import dbt.cli.main", "ratio"],
        &[
            row("ready / imported, ms", &ready, &import),
            row("resident (RSS), MiB", &rss, &import_rss),
            row("proportional (PSS), MiB", &pss, &import_pss),
        ],
    );
}
