//! PostgreSQL with pgbench, and a client whose transactions are numbered.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::transactions::{Dialogue, EVERYTHING, SCHEMA, whole};
use crate::bed::pause;
use crate::child::{self, Group, command, give_away, unprivileged};
use crate::party::{Desk, Load, Mark, Verdict};

/// Small and with everything on that keeps data.
const CONF: &str = "fsync = on
full_page_writes = on
synchronous_commit = on
shared_buffers = 16MB
max_wal_size = 48MB
min_wal_size = 16MB
checkpoint_timeout = 30s
max_connections = 20
listen_addresses = ''
logging_collector = off
";

/// What pgbench has done is there, and its books are balanced.
const BOOKS: &str = "SELECT count(*) FROM pgbench_history;
SELECT (SELECT sum(abalance) FROM pgbench_accounts) - (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
(SELECT sum(tbalance) FROM pgbench_tellers) - (SELECT coalesce(sum(delta), 0) FROM pgbench_history),
(SELECT sum(bbalance) FROM pgbench_branches) - (SELECT coalesce(sum(delta), 0) FROM pgbench_history);";

/// Longest time until the server takes connections; a recovery is part of it.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Postgres;

/// A program of the newest server that is installed.
fn program(name: &str) -> Result<String, String> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|dirs| dirs.flatten().map(|dir| dir.path()).collect())
        .unwrap_or_default();
    found.sort();
    let newest = found.pop().map(|dir| dir.join("bin").join(name));
    let there = newest.filter(|path| path.exists());
    there
        .map(|path| path.display().to_string())
        .ok_or_else(|| format!("{name} is missing: install the package postgresql"))
}

/// A program of the server, which refuses to run as root.
fn of_server(name: &str, dir: &Path) -> Result<Command, String> {
    let mut line = unprivileged(&program(name)?);
    line.current_dir(dir);
    Ok(line)
}

/// A client of the server whose data are here.
fn client(name: &str, data: &Path) -> Result<Command, String> {
    let mut line = command(&program(name)?);
    line.env("PGHOST", data).env("PGUSER", "soak");
    line.env("PGDATABASE", "postgres");
    Ok(line)
}

fn psql(data: &Path) -> Result<Command, String> {
    let mut line = client("psql", data)?;
    line.args(["-qAtX", "-v", "ON_ERROR_STOP=1"]);
    Ok(line)
}

/// A running server.
struct Server {
    data: PathBuf,
    child: Child,
}

impl Server {
    /// Starts the server, which recovers first, and waits until it takes connections.
    fn start(desk: Option<&Desk>, dir: &Path) -> Result<Self, String> {
        let data = dir.join("data");
        // They name a process of before a crash, or the server of the original.
        for stale in ["postmaster.pid", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"] {
            let _ = fs::remove_file(data.join(stale));
        }
        let mut line = of_server("postgres", dir)?;
        line.arg("-D").arg(&data).arg("-k").arg(&data);
        let log = fs::File::create(dir.join("server.log")).map_err(|e| e.to_string())?;
        line.stdout(Stdio::null()).stderr(log);
        let child = match desk {
            Some(desk) => desk.group.spawn(&mut line)?,
            None => Group::default().spawn(&mut line)?,
        };
        let mut server = Self { data, child };
        let since = Instant::now();
        while child::run(client("pg_isready", &server.data)?.arg("-q")).is_err() {
            if server.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return Err(format!("the server has ended: {}", server.log()));
            }
            if since.elapsed() > PATIENCE {
                return Err(format!("the server does not answer: {}", server.log()));
            }
            pause(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn log(&self) -> String {
        let log = self.data.with_file_name("server.log");
        fs::read_to_string(log).unwrap_or_default()
    }

    fn ask(&self, statements: &str) -> Result<String, String> {
        child::run(psql(&self.data)?.args(["-c", statements]))
    }

    /// Ends it in order.
    fn stop(mut self) -> Verdict {
        let dir = self.data.with_file_name("");
        let mut stop = of_server("pg_ctl", &dir)?;
        stop.args(["stop", "-s", "-w", "-m", "fast", "-D"]);
        child::run(stop.arg(&self.data))?;
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            ended => Err(format!("the server ended with {ended:?}: {}", self.log())),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        child::kill(&mut self.child);
    }
}

/// Transactions that pgbench says it has done, also when its server went away.
fn processed(said: &str) -> u64 {
    let mut lines = said.lines();
    let count =
        lines.find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let digits = count.and_then(|count| count.split('/').next());
    digits
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or_default()
}

impl Load for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn prepare(&self, dir: &Path) -> Verdict {
        give_away(dir)?;
        let mut init = of_server("initdb", dir)?;
        init.args(["--data-checksums", "--wal-segsize=4", "--auth=trust"]);
        init.args(["--username=soak", "--no-locale", "--no-sync", "-D"]);
        let data = dir.join("data");
        child::run(init.arg(&data))?;
        let conf = data.join("postgresql.conf");
        fs::write(&conf, CONF).map_err(|e| e.to_string())?;
        child::run(command("sync").arg("-f").arg(dir))?;
        let server = Server::start(None, dir)?;
        child::run(client("pgbench", &data)?.args(["-i", "-q", "-s", "2"]))?;
        server.ask(&format!("CREATE EXTENSION amcheck; {SCHEMA}"))?;
        server.stop()
    }

    fn bout(&self, desk: &Desk, seed: u64) -> Verdict {
        let server = Server::start(Some(desk), &desk.dir)?;
        let mut bench = client("pgbench", &server.data)?;
        bench.args(["-n", "-c", "4", "-T", "6"]);
        bench.arg(format!("--random-seed={seed}"));
        bench.stdout(Stdio::piped()).stderr(Stdio::piped());
        // Not of the group: it ends with its server, and then says how much it has done.
        let bench = Bench(Some(bench.spawn().map_err(|e| e.to_string())?));
        talk(desk, &server.data, bench)?;
        server.stop()
    }

    fn holds(&self, dir: &Path, mark: Mark) -> Verdict {
        let server = Server::start(None, dir)?;
        whole(&server.ask(EVERYTHING)?, mark)?;
        let books = server.ask(BOOKS)?;
        let (count, sums) = books.trim().split_once('\n').ok_or("no books")?;
        let count: u64 = count.parse().map_err(|_| books.clone())?;
        if count < mark.reported || sums != "0|0|0" {
            return Err(format!(
                "pgbench: {count} transactions of {}, {sums} left over",
                mark.reported
            ));
        }
        child::run(client("pg_amcheck", &server.data)?.args(["--heapallindexed", "--all"]))?;
        server.ask("VACUUM (FREEZE)")?;
        let data = server.data.clone();
        server.stop()?;
        child::run(
            of_server("pg_checksums", dir)?
                .arg("--check")
                .arg("-D")
                .arg(data),
        )
        .map(drop)
    }
}

/// pgbench at work.
struct Bench(Option<Child>);

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(child) = self.0.as_mut() {
            child::kill(child);
        }
    }
}

/// Transactions of our own while pgbench runs; its count is taken whatever happens to either.
fn talk(desk: &Desk, data: &Path, mut bench: Bench) -> Verdict {
    let talked = transact(desk, data, &mut bench);
    let Some(child) = bench.0.take() else {
        return talked;
    };
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    desk.report(processed(&said));
    talked?;
    match output.status.success() && processed(&said) > 0 {
        true => Ok(()),
        false => Err(format!("pgbench: {output:?}")),
    }
}

fn transact(desk: &Desk, data: &Path, bench: &mut Bench) -> Verdict {
    let mut dialogue = Dialogue::start(desk, psql(data)?)?;
    while let Some(child) = bench.0.as_mut() {
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            break;
        }
        dialogue.next()?;
    }
    dialogue.end()
}
