//! A unit with a little of everything, for the tests of the texts and of the tree.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

use std::sync::{Arc, Mutex};

use super::tree::Unit;
use crate::server::params::Values;
use crate::server::setup::Durability;
use crate::server::tally::Tally;
use crate::server::{Done, EventRecord, Published, Rate, Request};
use crate::set::{
    Answer, BitmapId, BitmapStatus, BitmapTag, Bytes, Code, CopyKind, CopyWork, Epoch, Generation,
    Geometry, MemberId, MemberStatus, Moment, OpId, OpState, Operation, OwnedBitmap, Policy,
    Refusal, SetState, SetStatus, Task, WriteBitmap,
};

/// Size of the unit: three regions and a short one.
pub(crate) const SIZE: u64 = 3 * 65_024 + 1024;

/// A unit that answers commands at once and keeps them.
pub(crate) struct Fake {
    pub(crate) state: Mutex<Arc<Published>>,
    pub(crate) requests: Mutex<Vec<Request>>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(Arc::new(published())),
            requests: Mutex::default(),
        })
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Published)) {
        let mut state = self.state.lock().expect("not poisoned");
        let state = Arc::make_mut(&mut state);
        state.seq += 1;
        change(state);
    }
}

impl Unit for Fake {
    fn state(&self) -> Arc<Published> {
        Arc::clone(&self.state.lock().expect("not poisoned"))
    }

    fn events(&self) -> Vec<EventRecord> {
        vec![EventRecord {
            seq: 93,
            time: Moment(1000),
            event: "member-detached".into(),
            facts: vec![
                ("member".into(), "m3".to_owned()),
                ("bitmap".into(), "00000007".to_owned()),
            ],
        }]
    }

    fn submit(&self, request: Request, done: Done) {
        let only_source = Request::Expel {
            member: "m1".to_owned(),
        };
        let refused = request == only_source;
        self.requests.lock().expect("not poisoned").push(request);
        done(if refused {
            Err(Refusal::new(Code::LastSource, "m1 is the only source member").at("m1"))
        } else {
            Ok(Answer {
                text: "it is done".to_owned(),
                facts: vec![("bitmap", "00000007".to_owned())],
            })
        });
    }
}

pub(crate) fn id(index: usize) -> MemberId {
    MemberId::new(index).expect("inside")
}

fn member(index: usize, state: &'static str, bitmap: Option<u32>) -> MemberStatus {
    MemberStatus {
        id: id(index),
        name: format!("m{}", index + 1),
        path: format!("/srv/images/m{}.img", index + 1),
        uuid: uuid::Uuid::from_u128(index as u128 + 1),
        state,
        reason: String::new(),
        since: Moment(2000),
        size: Bytes(SIZE),
        errors: 0,
        read_cost: 2,
        site: 0,
        timeout: 0,
        answers: true,
        bitmap: bitmap.map(BitmapId),
        departed: state == "detached",
        lost: None,
    }
}

fn bitmap(number: u32, index: usize, in_use: bool, marks: &[(u64, u64)]) -> BitmapStatus {
    let geometry = Geometry::new(Bytes(SIZE), 127).expect("valid");
    let map = WriteBitmap::empty(geometry);
    for &(at, len) in marks {
        let range = geometry.clip(Bytes(at), Bytes(len)).expect("inside");
        map.mark(geometry.regions_of(range));
    }
    BitmapStatus {
        tag: Some(BitmapTag {
            id: BitmapId(number),
            policy: Policy::MinicopyOptional,
            created: Moment(3000),
            generation: 4,
        }),
        member: Some(id(index)),
        in_use,
        map: Arc::new(map),
    }
}

fn operation(geometry: Geometry) -> Operation {
    let map = WriteBitmap::empty(geometry);
    map.mark(geometry.regions_of(geometry.clip(Bytes(0), Bytes(65_025)).expect("inside")));
    let mut work = CopyWork::new(OpId(9), CopyKind::Mini, id(1), OwnedBitmap::new(map));
    work.begin();
    let step = work.next_step(|_| 1).expect("marked");
    work.finish(step, true);
    Operation {
        id: OpId(9),
        task: Task::Copy {
            kind: CopyKind::Mini,
            target: id(1),
            source: id(0),
            tag: None,
        },
        state: OpState::Running,
        queued: Moment(4000),
        started: Some(Moment(5000)),
        finished: None,
        progress: work.progress(),
    }
}

/// m1 is a source, m2 is being filled by operation 9, m3 is detached with bitmap 7.
pub(crate) fn published() -> Published {
    let geometry = Geometry::new(Bytes(SIZE), 127).expect("valid");
    Published {
        seq: 1,
        time: Moment(60_000),
        mounted: Moment(1000),
        created: None,
        unit: "dsa1".to_owned(),
        label: "payroll".to_owned(),
        uuid: uuid::Uuid::from_u128(77),
        read_only: false,
        stalled: None,
        durability: Durability::Memory,
        set: SetStatus {
            epoch: Epoch(3),
            generation: Generation::from_number(5).expect("valid"),
            geometry,
            state: SetState::Copying,
            members: vec![
                member(0, "source", None),
                member(1, "copy-target", Some(8)),
                member(2, "detached", Some(7)),
            ],
            bitmaps: vec![
                bitmap(8, 1, true, &[(65_024, 1)]),
                bitmap(7, 2, false, &[(0, 1), (2 * 65_024, 65_025)]),
            ],
            operations: vec![operation(geometry)],
            master: id(0),
            intent_bits: 2,
            homeless: None,
            lost: None,
        },
        rates: vec![Rate {
            op: OpId(9),
            bytes_per_second: Some(1 << 20),
            eta_s: Some(2),
        }],
        expected: vec![(CopyKind::Mini, 65_536)],
        announced: Arc::default(),
        meters: Arc::default(),
        tally: Tally::default(),
        fingerprints: Vec::new(),
        params: Values::default(),
    }
}
