//! The process that freezes: it holds the file systems open, freezes them, and thaws them whatever becomes of the
//! one who has asked for it.
//!
//! It is a program of its own, so that nothing that is stopped or killed can take it along: not the command line, not
//! a server, not their terminal. While something is frozen it writes nothing but words into the pipe.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::system;
use super::hook;
use super::rest::{Rest, wake};
use super::wire::{Cause, Plan, Released, THAW, Word};
use crate::error::{Error, Result};
use crate::set::Code;

/// How often somebody looks whether the thread that freezes has ended.
const TICK: Duration = Duration::from_millis(20);

/// What happens to the process.
enum Event {
    /// Everything is at rest.
    Frozen,
    /// It cannot be.
    Failed(Error),
    /// It is to go on.
    Order,
    /// Nobody can ask for that any more.
    Alone,
}

/// Runs as the process that freezes: a plan on standard input, words on standard output.
pub(in crate::cli) fn main() -> ExitCode {
    if let Err(error) = run() {
        say(&failed(&error));
    }
    ExitCode::SUCCESS
}

fn run() -> Result<()> {
    // Who ends the command line ends its whole group, and this one has to thaw first.
    let _ = system::leave_session();
    let signals = system::hold_signals();
    signals.map_err(|e| Error::io("signals cannot be held", e))?;
    system::stay_in_memory();
    let mut orders = BufReader::new(io::stdin());
    let mut line = String::new();
    let read = orders.read_line(&mut line);
    let read = read.map_err(|e| Error::io("the plan cannot be read", e))?;
    if read == 0 {
        return Ok(());
    }
    let plan: Plan = serde_json::from_str(&line)
        .map_err(|e| Error::new(Code::Syntax, "the plan makes no sense").caused_by(e))?;
    serve(&plan, open(&plan)?, orders);
    Ok(())
}

fn open(plan: &Plan) -> Result<Vec<File>> {
    let places = plan.places.iter();
    let open = places.map(|place| system::open_mount(&place.mountpoint, place.mount_id));
    open.collect()
}

fn serve(plan: &Plan, files: Vec<File>, orders: BufReader<io::Stdin>) {
    let begin = Instant::now();
    let rest = Arc::new(Rest::new(files));
    let (events, received) = mpsc::channel();
    listen(orders, events.clone());
    let worker = start(plan.clone(), Arc::clone(&rest), events, begin);
    let cause = attend(&received, begin + plan.patience());
    if rest.is_freezing() {
        say(&Word::Late);
    }
    rest.release(&plan.servers);
    join(worker, &plan.servers);
    // Too late to be attended to, and still the reason.
    if let Ok(Event::Failed(error)) = received.try_recv() {
        say(&failed(&error));
    }
    let mut released = Released {
        cause,
        ends: rest.ends(),
        thaw_cmd: None,
    };
    say(&Word::Thawed(released.clone()));
    if let Some(text) = &plan.thaw_cmd {
        released.thaw_cmd = hook::run(text, &plan.env, plan.behind()).err();
    }
    say(&Word::Released(released));
}

/// Tells of orders, and of the end of the one who gives them.
fn listen(orders: BufReader<io::Stdin>, events: Sender<Event>) {
    std::thread::spawn(move || {
        for line in orders.lines() {
            match line {
                Ok(line) if line == THAW => {
                    let _ = events.send(Event::Order);
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        let _ = events.send(Event::Alone);
    });
}

/// Brings everything to rest on a thread of its own: none of these calls can be taken back.
fn start(plan: Plan, rest: Arc<Rest>, events: Sender<Event>, begin: Instant) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let frozen = freeze(&plan, &rest, begin);
        let _ = events.send(match frozen {
            Ok(()) => Event::Frozen,
            Err(error) => Event::Failed(error),
        });
    })
}

fn freeze(plan: &Plan, rest: &Rest, begin: Instant) -> Result<()> {
    if let Some(text) = &plan.freeze_cmd {
        let left = plan.patience().saturating_sub(begin.elapsed());
        hook::run(text, &plan.env, left).map_err(|how| {
            Error::new(Code::Io, format!("the command `{text}` {how}")).with_hint(
                "no member has left: mend the command, or give it more time with --freeze-timeout",
            )
        })?;
    }
    let begins = |index| say(&Word::Begins(index));
    rest.freeze(begins).map_err(|(index, cause)| {
        let place = plan.places.get(index);
        let shown = place.map(|place| place.mountpoint.display().to_string());
        refused(&shown.unwrap_or_default(), cause)
    })
}

fn refused(place: &str, cause: io::Error) -> Error {
    match cause.raw_os_error() {
        Some(libc::EBUSY) => {
            let says = format!("{place} is frozen already, by somebody else");
            let hint = format!("`fsfreeze -u {place}` thaws it, if nobody needs it frozen");
            Error::new(Code::InUse, says).with_hint(hint)
        }
        Some(libc::EOPNOTSUPP) => {
            let says = format!("the file system at {place} cannot be frozen");
            Error::new(Code::NotSupported, says)
                .with_hint("unmount it, or name the one that counts: --freeze=MOUNTPOINT")
        }
        Some(libc::EPERM) => Error::new(Code::NotPermitted, format!("{place} cannot be frozen"))
            .with_hint("freezing is for root"),
        _ => Error::io(format!("{place} cannot be frozen"), cause),
    }
}

/// Waits for a reason to let go, and tells how it goes meanwhile.
fn attend(received: &Receiver<Event>, end: Instant) -> Cause {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match received.recv_timeout(left) {
            Ok(Event::Frozen) => say(&Word::Frozen),
            Ok(Event::Failed(error)) => {
                say(&failed(&error));
                return Cause::Order;
            }
            Ok(Event::Order) => return Cause::Order,
            Ok(Event::Alone) | Err(RecvTimeoutError::Disconnected) => return Cause::Alone,
            Err(RecvTimeoutError::Timeout) => return Cause::Deadline,
        }
    }
}

/// Waits for the thread that freezes; it thaws what comes to rest too late.
fn join(worker: JoinHandle<()>, servers: &[u32]) {
    wake(servers, || match worker.is_finished() {
        true => Err(RecvTimeoutError::Disconnected),
        // It needs no thread, which there may be none left for.
        false => system::pause(TICK).map_or(Ok(()), |()| Err::<(), _>(RecvTimeoutError::Timeout)),
    });
    let _ = worker.join();
}

fn failed(error: &Error) -> Word {
    Word::Failed {
        code: error.code().name().to_owned(),
        sentence: error.to_string(),
        hint: error.hint().to_owned(),
    }
}

/// Nobody may be there to hear it.
fn say(word: &Word) {
    if let Ok(text) = serde_json::to_string(word) {
        let _ = hook::line(&mut io::stdout().lock(), &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_ends_by_order_alone_or_with_its_time() {
        let attend_to = |sent: Vec<Event>, end| {
            let (events, received) = mpsc::channel();
            sent.into_iter().for_each(|event| {
                events.send(event).expect("somebody listens");
            });
            let cause = attend(&received, end);
            drop(events);
            cause
        };
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let table = [
            (vec![Event::Frozen, Event::Order], later, Cause::Order),
            (vec![Event::Frozen, Event::Alone], later, Cause::Alone),
            (
                vec![Event::Failed(Error::new(Code::Io, "x"))],
                later,
                Cause::Order,
            ),
            (vec![Event::Frozen], now, Cause::Deadline),
        ];
        for (sent, end, cause) in table {
            assert_eq!(attend_to(sent, end), cause);
        }
    }

    #[test]
    fn who_is_frozen_already_is_left_to_those_who_froze_it() {
        let error = refused("/data", io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(error.code(), Code::InUse);
        assert_eq!(
            error.to_string(),
            "/data is frozen already, by somebody else"
        );
    }
}
