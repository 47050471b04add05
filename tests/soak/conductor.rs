//! Has members leave and come back under the loads, kills the server, and calls the judges.

use std::time::Duration;

use serde_json::Value;
use shadowset::testing::Rng;

use crate::bed::{eventually, pause};
use crate::ground::{Ground, Kind, MEMBERS};
use crate::party::{Load, Mark, Party};
use crate::tally::{Part, Tally};

/// What is the same for all file systems.
pub(crate) struct Conductor {
    pub(crate) rng: Rng,
    pub(crate) tally: Tally,
}

impl Conductor {
    /// Decided by a seed, as far as real time allows.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            tally: Tally::new(seed),
        }
    }
}

impl Drop for Conductor {
    /// Also when a judge has found something.
    fn drop(&mut self) {
        println!("{}", self.tally);
    }
}

/// How a round ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The loads come to their end, and everything is unmounted.
    Orderly,
    /// The server is killed under them.
    Kill,
}

/// One file system from its making on, with all loads.
pub(crate) struct Turn<'a> {
    // Dropped first: loads end before what they stand on goes.
    parties: Vec<Party>,
    ground: Ground,
    rng: &'a mut Rng,
    tally: &'a mut Tally,
}

impl<'a> Turn<'a> {
    pub(crate) fn new(
        kind: &'static Kind,
        loads: &[&'static dyn Load],
        conductor: &'a mut Conductor,
    ) -> Self {
        let ground = Ground::new(kind);
        let fs = ground.fs();
        let parties = loads.iter().map(|load| Party::new(*load, &fs)).collect();
        Self {
            parties,
            ground,
            rng: &mut conductor.rng,
            tally: &mut conductor.tally,
        }
    }

    /// Some loads start, members come and go, it ends in one way or the other, and everything is judged.
    pub(crate) fn round(&mut self, hand: &[usize], cycles: u64, end: End) {
        self.ground.up();
        let names = hand.iter().map(|at| self.parties[*at].load.name());
        let names: Vec<&str> = names.collect();
        let fs = self.ground.kind.name;
        self.tell(&format!(
            "{fs}: {}; {cycles} cycles, {end:?}",
            names.join(", ")
        ));
        for at in hand {
            self.parties[*at].start(self.rng.bits());
        }
        for _ in 0..cycles {
            self.cycle();
        }
        match end {
            End::Orderly => self.orderly(hand),
            End::Kill => self.kill(),
        }
        for at in hand {
            let (party, fs) = (&self.parties[*at], self.ground.kind.name);
            self.tally
                .add(Part::Bouts, party.load.name(), fs, party.bouts());
        }
        self.ground.judge(self.tally);
    }

    /// A line that tells how far it is.
    fn tell(&self, what: &str) {
        println!("{:6.1} min  {what}", self.tally.minutes());
    }

    fn count(&mut self, part: Part, what: &'static str, count: u64) {
        self.tally.add(part, what, self.ground.kind.name, count);
    }

    fn check(&mut self) {
        self.parties.iter_mut().for_each(Party::check);
    }

    fn marks(&self) -> Vec<Mark> {
        self.parties.iter().map(Party::mark).collect()
    }

    /// One or two members leave, are looked at from outside, and come back.
    fn cycle(&mut self) {
        let first = self.rng.place(MEMBERS.len());
        let both = self.rng.chance(300);
        let away = &[first, (first + 1) % MEMBERS.len()][..1 + usize::from(both)];
        let looked_at = MEMBERS[away[self.rng.place(away.len())]];
        let mut frozen = None;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for member in away.iter().map(|at| MEMBERS[*at]) {
            let freeze = self.rng.chance(400);
            let marks = self.marks();
            let told = self.detach(member, freeze);
            if member == looked_at {
                (before, after) = (marks, self.marks());
                frozen = freeze.then(|| told["mount"][0].clone());
            }
        }
        self.look(looked_at, &frozen, &cut(&before, &after));
        for member in away.iter().map(|at| MEMBERS[*at]) {
            self.ground.unit.minicopy(member);
            self.count(Part::Done, "detach and attach", 1);
            assert_eq!(self.ground.unit.state_of(member), "source");
        }
        self.check();
    }

    fn detach(&mut self, member: &str, freeze: bool) -> Value {
        let how = if freeze {
            "--freeze --freeze-timeout 60"
        } else {
            ""
        };
        self.count(Part::Done, if freeze { "frozen" } else { "not frozen" }, 1);
        let line = format!("shadowset detach dsa1 {member} --policy minicopy --json {how}");
        serde_json::from_str(&self.ground.unit.sh(&line)).expect("JSON")
    }

    /// The image of a member that is away holds what was there when it left, and is not written.
    fn look(&mut self, member: &str, frozen: &Option<Value>, marks: &[Mark]) {
        let quiet = self.ground.unit.checksum(member);
        if let Some(line) = frozen {
            let line = line.as_str().expect("a command");
            self.ground.read_image(line, self.tally);
        }
        let parties = &self.parties;
        self.ground.look_at_copy(member, self.tally, |dir| {
            for (party, mark) in parties.iter().zip(marks) {
                party.holds(dir, *mark);
            }
        });
        self.count(Part::Judged, "loads on a detached image", 1);
        self.written_behind(member);
        let now = self.ground.unit.checksum(member);
        assert_eq!(quiet, now, "I5: {member} was written to");
    }

    /// Waits until a write has passed a member by.
    fn written_behind(&self, member: &str) {
        let unit = &self.ground.unit;
        eventually("writes are marked", || {
            unit.sh("sync -f fs");
            unit.bitmap(member, "set_bits") > 0
        });
    }

    fn orderly(&mut self, hand: &[usize]) {
        for at in hand {
            self.parties[*at].stop();
        }
        self.ground.again(self.tally);
        self.hold();
        for at in hand {
            self.parties[*at].rests();
        }
        self.count(Part::Done, "orderly end", 1);
    }

    /// kill -9 at some moment: all are sources, or one is away, or coming back.
    fn kill(&mut self) {
        let member = MEMBERS[self.rng.place(MEMBERS.len())];
        let moment = self.rng.below(3);
        let is = ["a source", "away", "coming back"][moment as usize];
        self.tell(&format!("kill, {member} is {is}"));
        if moment > 0 {
            self.detach(member, false);
            self.written_behind(member);
        }
        pause(Duration::from_millis(self.rng.below(1500)));
        self.check();
        if moment > 1 {
            let attach = format!("attach {member} policy=minicopy");
            self.ground.unit.accepted(&attach);
        }
        self.die();
        self.ground.recover(self.tally);
        if self.rng.chance(250) {
            self.tell("kill in the middle of the merge");
            self.ground.kill(self.tally);
            self.ground.recover(self.tally);
        }
        self.hold();
    }

    /// kill -9 of the server under the loads. A file system that is shut down under a sync may tell that it is done (xfs
    /// does, now and then, on any device): what a load was told counts while its device lived, and the server stands
    /// still before it is killed, so that nothing was promised in between.
    fn die(&mut self) {
        self.ground.unit.halt();
        let promised = self.marks();
        self.ground.kill(self.tally);
        for (party, mark) in self.parties.iter_mut().zip(promised) {
            party.die();
            party.promised(mark);
        }
    }

    /// Every load finds what it was promised.
    fn hold(&mut self) {
        let fs = self.ground.fs();
        for party in &self.parties {
            party.holds(&fs, party.mark());
        }
        self.count(Part::Judged, "loads on the unit", 1);
    }
}

/// What a cut between two moments may hold.
fn cut(before: &[Mark], after: &[Mark]) -> Vec<Mark> {
    let both = before.iter().zip(after);
    both.map(|(before, after)| Mark {
        most: after.most,
        ..*before
    })
    .collect()
}
