//! The copier: moves the steps of copies under the fence, several at once.
//!
//! A copy's work is a value that the control thread hands in and gets back. A step takes the fence,
//! pins the View, reads from a source and writes the target; holes stay holes. Only a finished step
//! clears bits (I1), and only the fence of a step delays an application (I9).

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::Sender;

use super::Message;
use super::pipeline::{Fenced, Pipeline, WritePermit};
use crate::io::aligned::AlignedBuf;
use crate::io::{Seek, Storage, Zero};
use crate::set::{ByteRange, CopyEnd, CopyStep, CopyWork, Event, MemberId, MemberSet, OpId};

/// Steps of one copy that are under way at once.
const DEPTH: usize = 2;
/// Most bytes of a step: 32 regions of 127 blocks.
const STEP_BYTES: u64 = 32 * 127 * 512;

/// Copies that are running.
#[derive(Debug)]
pub(super) struct Copier {
    pipeline: Arc<Pipeline>,
    messages: Sender<Message>,
    runs: HashMap<OpId, Arc<Run>>,
}

#[derive(Debug)]
struct State {
    work: Option<Box<CopyWork>>,
    paused: bool,
    end: Option<CopyEnd>,
    threads: usize,
}

/// One running copy.
#[derive(Debug)]
struct Run {
    target: MemberId,
    state: Mutex<State>,
    changed: Condvar,
}

/// Why a step failed.
enum Failure {
    Target(io::Error),
    Source(String),
    /// The target takes part no more; the control thread knows.
    Gone,
}

impl Copier {
    pub(super) fn new(pipeline: Arc<Pipeline>, messages: Sender<Message>) -> Self {
        Self {
            pipeline,
            messages,
            runs: HashMap::new(),
        }
    }

    /// Starts a copy. Without a thread it comes back as failed at once.
    pub(super) fn start(&mut self, work: Box<CopyWork>) {
        let (op, target) = (work.op(), work.target());
        let state = State {
            work: Some(work),
            paused: false,
            end: None,
            threads: 0,
        };
        let run = Arc::new(Run {
            target,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        self.runs.insert(op, Arc::clone(&run));
        // Held until all threads are counted, so that the first cannot take itself for the last.
        let mut state = run.lock();
        for index in 0..DEPTH {
            let (run, pipeline) = (Arc::clone(&run), Arc::clone(&self.pipeline));
            let messages = self.messages.clone();
            let thread = std::thread::Builder::new().name(format!("copy-{op}.{index}"));
            match thread.spawn(move || run.work(&pipeline, &messages)) {
                Ok(_) => state.threads += 1,
                Err(error) => tracing::error!(%op, %error, "no thread for a copy"),
            }
        }
        if state.threads == 0 {
            let reason = "no thread could be started".to_owned();
            state.end = Some(CopyEnd::SourceFailed(reason));
            state.give_back(&self.messages);
        }
    }

    pub(super) fn pause(&self, op: OpId, paused: bool) {
        if let Some(run) = self.runs.get(&op) {
            run.lock().paused = paused;
            run.changed.notify_all();
        }
    }

    /// Tells a copy to come back when its steps under way have ended.
    pub(super) fn stop(&self, op: OpId) {
        if let Some(run) = self.runs.get(&op) {
            run.lock().end.get_or_insert(CopyEnd::Stopped);
            run.changed.notify_all();
        }
    }

    /// Forgets a copy that has come back.
    pub(super) fn ended(&mut self, op: OpId) {
        self.runs.remove(&op);
    }
}

impl State {
    fn give_back(&mut self, messages: &Sender<Message>) {
        if let Some(work) = self.work.take() {
            let end = self.end.take().filter(|_| !work.is_drained());
            let end = end.unwrap_or(CopyEnd::Drained);
            // A closed channel means that the unit has ended and nobody waits.
            let _ = messages.send(Message::Event(Event::CopyEnded(work, end)));
        }
    }
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies steps until there are none or the copy has to end; the last thread gives the work back.
    fn work(&self, pipeline: &Pipeline, messages: &Sender<Message>) {
        let mut scratch = Scratch {
            buf: AlignedBuf::zeroed(STEP_BYTES as usize),
            known: None,
        };
        let _leave = Leave {
            run: self,
            messages,
        };
        while let Some(step) = self.next() {
            let fenced = pipeline.enter(step.range());
            let outcome = copy(pipeline, &fenced, self.target, &step, &mut scratch);
            // Under the fence: a mark of a later epoch must come after this clear (I1).
            self.finish(step, outcome);
            drop(fenced);
        }
    }

    fn next(&self) -> Option<CopyStep> {
        let mut state = self.lock();
        loop {
            if state.end.is_some() {
                return None;
            }
            if !state.paused {
                let work = state.work.as_mut()?;
                if let Some(step) = work.next_step(STEP_BYTES) {
                    return Some(step);
                }
                if work.is_drained() {
                    self.changed.notify_all();
                    return None;
                }
            }
            // Another thread's step may still leave its regions stale.
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finish(&self, step: CopyStep, outcome: Result<(), Failure>) {
        let mut state = self.lock();
        if let Some(work) = state.work.as_mut() {
            work.finish(step, outcome.is_ok());
        }
        if let Err(failure) = outcome {
            let end = match failure {
                Failure::Target(error) => {
                    CopyEnd::TargetFailed(format!("a copy step could not be written: {error}"))
                }
                Failure::Source(text) => CopyEnd::SourceFailed(text),
                Failure::Gone => CopyEnd::Stopped,
            };
            state.end.get_or_insert(end);
        }
        self.changed.notify_all();
    }
}

/// Counts a thread out, however it ends; the last one gives the work back.
struct Leave<'a> {
    run: &'a Run,
    messages: &'a Sender<Message>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut state = self.run.lock();
        if std::thread::panicking() {
            let reason = "a copy thread has failed; see the log".to_owned();
            state.end.get_or_insert(CopyEnd::SourceFailed(reason));
            self.run.changed.notify_all();
        }
        state.threads -= 1;
        if state.threads == 0 {
            state.give_back(self.messages);
        }
    }
}

/// What a copy thread keeps from step to step.
struct Scratch {
    buf: AlignedBuf,
    known: Option<Data>,
}

/// Where a source is known to have data. To find the end of data may take time in proportion to its
/// length (tmpfs looks at every page), so one answer serves all the steps inside it. What has become
/// a hole there since is copied as the zeros that it reads as; no hole is ever believed in.
#[derive(Clone, Copy, Debug)]
struct Data {
    source: MemberId,
    start: u64,
    end: u64,
}

/// Copies one step.
fn copy(
    pipeline: &Pipeline,
    fenced: &Fenced<'_>,
    target: MemberId,
    step: &CopyStep,
    scratch: &mut Scratch,
) -> Result<(), Failure> {
    if !fenced.live().view().writers().contains(target) {
        return Err(Failure::Gone);
    }
    let permit = fenced.permit_copy(step.regions());
    let mut rest = Some(step.range());
    while let Some(range) = rest {
        let (part, data, after) = next_part(fenced, target, range, &mut scratch.known);
        rest = after;
        if data {
            copy_data(pipeline, fenced, &permit, (target, part), &mut scratch.buf)?;
        } else {
            let hole = target_of(&permit, target)?.zero_at(part.start(), part.len(), Zero::Punch);
            hole.map_err(Failure::Target)?;
        }
    }
    Ok(())
}

/// Splits a range where the source changes from hole to data: the part, whether it is data, the rest.
fn next_part(
    fenced: &Fenced<'_>,
    target: MemberId,
    range: ByteRange,
    known: &mut Option<Data>,
) -> (ByteRange, bool, Option<ByteRange>) {
    let live = fenced.live();
    let tried = [target].into_iter().collect::<MemberSet>();
    let planned = live.view().plan_read(range, tried, |_| 0);
    let Some((source, store)) = planned.and_then(|id| Some((id, live.store(id)?))) else {
        return (range, true, None);
    };
    let start = range.start();
    let seek = |what| store.seek(start, what).ok();
    let covers = |d: &Data| d.source == source && (d.start..d.end).contains(&start);
    let (border, data) = match known.filter(covers) {
        Some(found) => (Some(found.end), true),
        None => match seek(Seek::Data) {
            Some(Some(at)) if at <= start => (seek(Seek::Hole).flatten(), true),
            Some(at) => (at.or(Some(range.end())), false),
            None => (None, true),
        },
    };
    if let Some(end) = border.filter(|_| data) {
        *known = Some(Data { source, start, end });
    }
    match border.map(|b| b.saturating_sub(start)) {
        Some(len) if len > 0 => {
            let (part, after) = range.split(len);
            (part, data, after)
        }
        _ => (range, true, None),
    }
}

fn copy_data(
    pipeline: &Pipeline,
    fenced: &Fenced<'_>,
    permit: &WritePermit<'_>,
    (target, range): (MemberId, ByteRange),
    buf: &mut AlignedBuf,
) -> Result<(), Failure> {
    let mut rest = Some(range);
    while let Some(range) = rest {
        let (part, after) = range.split(buf.len() as u64);
        rest = after;
        let bytes = &mut buf[..part.len() as usize];
        pipeline
            .read_from(fenced.live(), part, bytes)
            .map_err(|_| Failure::Source("no source could be read".to_owned()))?;
        target_of(permit, target)?
            .write_at(bytes, part.start())
            .map_err(Failure::Target)?;
    }
    Ok(())
}

fn target_of<'a>(
    permit: &'a WritePermit<'_>,
    target: MemberId,
) -> Result<&'a dyn Storage, Failure> {
    permit.store(target).ok_or(Failure::Gone)
}
