//! The set with a shell in which nothing fails: what commands answer, and what people are shown.

mod answers;
mod attach;
mod checked;
mod doubts;
mod growth;
mod judged;
mod leavers;
mod leaving;
mod mounting;
mod rounds;
mod shown;
mod waiting;

use super::assess::Start;
use super::copy::CopyWork;
use super::event::{Answer, Attach, AttachPolicy, CandidateId, Command, Effect, Event, Joiner};
use super::event::{Notice, Ticket};
use super::geometry::{Bytes, Geometry, Regions};
use super::limits::Limits;
use super::member::{Member, MemberId, MemberSet, MemberState, Moment, Policy};
use super::mount::{Beginning, Past};
use super::record::Homeless;
use super::refusal::{Code, Refusal};
use super::scb::Generation;
use super::shadow::ShadowSet;
use super::view::{Epoch, View};

pub(super) const UNIT: u64 = 1 << 20;
/// Bytes of a region.
pub(super) const REGION: u64 = 4096;

pub(super) fn geometry() -> Geometry {
    Geometry::new(Bytes(UNIT), 8).expect("a small unit")
}

pub(super) fn id(place: usize) -> MemberId {
    MemberId::new(place).expect("a place")
}

fn only(place: usize) -> MemberSet {
    [id(place)].into_iter().collect()
}

/// The member `m1`, `m2` and so on, not seated yet.
pub(crate) fn member(place: usize, size: u64) -> Member {
    Member {
        name: format!("m{}", place + 1),
        uuid: uuid::Uuid::from_u128(place as u128 + 1),
        path: String::new(),
        size: Bytes(size),
        read_cost: 0,
        site: 0,
        timeout: 0,
        errors: 0,
        since: Moment(0),
        reason: String::new(),
        state: MemberState::Vacant,
    }
}

/// What a new set begins with.
pub(crate) fn beginning() -> Beginning {
    Beginning {
        geometry: geometry(),
        generation: Generation::FIRST,
        clean: true,
        last_mark: 0,
        unproven: false,
        mark: 1,
        absent: Policy::default(),
        past: Past::Unknown("new".to_owned()),
        home: Ok(()),
        limits: Limits::default(),
        now: Moment(0),
    }
}

/// A set of these members at rest.
pub(super) fn begun(from: Beginning, members: Vec<(Member, Start)>) -> ShadowSet {
    let mut set = ShadowSet::assemble(from, members).expect("a source");
    let effects = set.begin();
    carry_out(&mut set, effects);
    set
}

/// A set at rest of sources with images of these sizes.
fn of_sizes(sizes: &[u64]) -> ShadowSet {
    let members = sizes.iter().enumerate();
    let members = members.map(|(place, size)| (member(place, *size), Start::Source));
    begun(beginning(), members.collect())
}

/// A set of so many sources at rest.
pub(super) fn set(sources: usize) -> ShadowSet {
    of_sizes(&vec![UNIT; sources])
}

/// Ends every flush well and every epoch at once; gives all effects.
fn carry_out(set: &mut ShadowSet, effects: Vec<Effect>) -> Vec<Effect> {
    let none = MemberSet::EMPTY;
    let (mut all, mut done) = (effects, 0);
    while done < all.len() {
        let event = match &all[done] {
            Effect::Flush(flush, _) => Some(Event::Flushed(*flush, none, none)),
            Effect::Publish(view) if view.epoch() > Epoch(1) => {
                Some(Event::Retired(Epoch(view.epoch().0 - 1)))
            }
            _ => None,
        };
        let more = event.map(|event| set.handle(Moment(1), event));
        all.extend(more.unwrap_or_default());
        done += 1;
    }
    all
}

/// Hands in an event and lets all that follows come to its end.
pub(super) fn run(set: &mut ShadowSet, event: Event) -> Vec<Effect> {
    let effects = set.handle(Moment(1), event);
    carry_out(set, effects)
}

fn command(command: Command) -> Event {
    Event::Command(Ticket::new(1), command)
}

/// Gives a command, and lets it come to its end.
pub(super) fn give(set: &mut ShadowSet, what: Command) -> Vec<Effect> {
    run(set, command(what))
}

/// The answers of commands.
fn answers(effects: Vec<Effect>) -> Vec<Result<Answer, Refusal>> {
    let reply = |e| match e {
        Effect::Reply(_, answer) => Some(answer),
        _ => None,
    };
    effects.into_iter().filter_map(reply).collect()
}

/// The one answer, of a command that was carried out.
fn good(effects: Vec<Effect>) -> Answer {
    let mut answers = answers(effects);
    assert_eq!(answers.len(), 1, "one answer to one command");
    answers.remove(0).expect("a good answer")
}

/// The one answer, of a command that was refused.
fn refused(effects: Vec<Effect>) -> Refusal {
    let mut answers = answers(effects);
    assert_eq!(answers.len(), 1, "one answer to one command");
    answers.remove(0).expect_err("a refusal")
}

fn notices(effects: &[Effect]) -> Vec<&Notice> {
    fn notice(effect: &Effect) -> Option<&Notice> {
        match effect {
            Effect::Notice(notice) => Some(notice),
            _ => None,
        }
    }
    effects.iter().filter_map(notice).collect()
}

/// The copies that were handed out.
fn copies(effects: Vec<Effect>) -> Vec<CopyWork> {
    let work = |e| match e {
        Effect::StartCopy(work) => Some(*work),
        _ => None,
    };
    effects.into_iter().filter_map(work).collect()
}

/// The last flush that the set has asked for with these effects.
fn flush_of(effects: &[Effect]) -> crate::set::event::FlushId {
    let flush = |e: &Effect| match e {
        Effect::Flush(flush, _) => Some(*flush),
        _ => None,
    };
    effects.iter().rev().find_map(flush).expect("a flush")
}

/// The newest View.
fn view(effects: &[Effect]) -> &View {
    fn view(effect: &Effect) -> Option<&View> {
        match effect {
            Effect::Publish(view) => Some(view),
            _ => None,
        }
    }
    effects.iter().rev().find_map(view).expect("a View")
}

fn fact<'a>(answer: &'a Answer, key: &str) -> &'a str {
    let found = answer.facts.iter().find(|(k, _)| *k == key);
    found.map_or("", |(_, value)| value.as_str())
}

fn named(name: &str) -> String {
    name.to_owned()
}

fn detach(set: &mut ShadowSet, name: &str, policy: Policy) -> Vec<Effect> {
    let member = named(name);
    give(set, Command::Detach { member, policy })
}

fn expel(set: &mut ShadowSet, name: &str) -> Vec<Effect> {
    let member = named(name);
    give(set, Command::Expel { member })
}

/// A write of applications to some regions, in the View of these effects.
fn write(effects: &[Effect], regions: Regions) {
    let range = geometry().bytes_of(regions);
    let _ = view(effects).mark(range, &Homeless);
}

/// The attach of a member whose image is as it was left.
fn returning(place: usize, policy: AttachPolicy) -> Attach {
    Attach {
        word: format!("m{}", place + 1),
        joiner: Joiner::Departed(id(place)),
        candidate: CandidateId(1),
        size: Bytes(UNIT),
        blank: false,
        blank_tail: false,
        changed: None,
        said: None,
        foreign: false,
        policy,
        source: None,
        confirm: false,
    }
}

/// A blank image that was never a member.
fn new_image(name: &str) -> Attach {
    Attach {
        joiner: Joiner::New {
            name: named(name),
            uuid: uuid::Uuid::from_u128(99),
            path: named("/x"),
        },
        blank: true,
        ..returning(0, AttachPolicy::default())
    }
}

fn attach(set: &mut ShadowSet, attach: Attach) -> Vec<Effect> {
    give(set, Command::Attach(Box::new(attach)))
}

fn code<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Code {
    result.expect_err("a refusal").code
}
