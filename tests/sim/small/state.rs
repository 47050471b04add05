//! What a state is: all that decides the future of a world, as one number. States that differ in names only are one.
//!
//! Numbers of requests, tickets, mounts and values are names: only whether two are the same matters. Epochs,
//! operations, bitmaps and flushes are ordered, so their ranks count; of generations it matters besides whether one
//! follows the other at once. The clock stands still. What has happened and decides nothing is left out:
//! operations that are over, writes before the last cut and the last flush, moments that no request has seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hasher};

use shadowset::set::{MemberId, MemberState, Scb};
use shadowset::testing::Oracle;
use shadowset::testing::memory::Value;

use crate::requests::Kind;
use crate::world::{Asker, World, blocks_of};

/// Numbers from here on are names.
pub(super) const NAMES: u64 = 1_000_000;

/// What of the past still matters.
struct Seen {
    /// When requests have begun that have their View, in their order.
    began: Vec<u64>,
    /// No cut comes before this epoch.
    cut: u64,
}

impl World {
    /// The state, as one number.
    pub(super) fn state_number(&self) -> u64 {
        let order = self.order();
        let leaving = |id| match self.state(id) {
            MemberState::Leaving(departed) => Some(departed.until.0),
            _ => None,
        };
        let current = self.views.last_key_value().map_or(0, |(epoch, _)| epoch.0);
        let seen = Seen {
            began: order
                .iter()
                .filter_map(|at| self.requests[*at].began())
                .collect(),
            cut: self.ids().filter_map(leaving).min().unwrap_or(current),
        };
        let mut text = self.left_by_crash(&seen);
        text.push_str(&without_past(&format!("{:?}", self.set)));
        text.push_str(&self.under_way(&order, &seen));
        number(&text)
    }

    /// What a crash would leave of it, as one number.
    pub(super) fn crash_number(&self) -> u64 {
        let seen = Seen {
            began: Vec::new(),
            cut: u64::MAX,
        };
        let mut text = self.left_by_crash(&seen);
        let members = self.set.members().iter();
        let members: Vec<_> = members.map(|m| (m.uuid, m.size)).collect();
        _ = write!(text, "{:?}", (members, self.is_undurable()));
        number(&text)
    }

    fn left_by_crash(&self, seen: &Seen) -> String {
        let mut text = String::with_capacity(16_384);
        for (place, disk) in self.disks.iter().enumerate() {
            let id = MemberId::new(place);
            let covers = self.flushes.iter().flat_map(|flush| &flush.covers);
            let begun: Vec<u64> = covers
                .filter(|(member, _)| Some(*member) == id)
                .map(|(_, written)| *written)
                .collect();
            for block in 0..disk.image.len() {
                let versions = disk.image.versions(block, &begun);
                let (durable, later) = versions.split_first().expect("what is durable");
                _ = write!(text, "{} {later:?}", durable.0);
            }
            let faults = (disk.bad_writes, disk.bad_reads, disk.bad_flushes);
            let state = (disk.open, disk.frozen.is_some(), faults, disk.changed);
            _ = write!(text, "{:?}", (state, disk.scb.as_ref().map(said)));
        }
        text.push_str(&self.home.digest());
        text.push_str(&self.allowed(&self.oracle, seen));
        let unmerged = self.known_values(&self.unmerged);
        let blocks = (unmerged, &self.loosely_read, &self.unsettled);
        let mounts = (
            &self.lineage,
            self.served,
            self.unserved,
            self.parted,
            self.gave_up,
        );
        _ = write!(text, "{:?}", (blocks, mounts));
        // What was expected before matters to a mount that has served nobody.
        if let (true, Some(before)) = (self.views.is_empty(), &self.before) {
            text.push_str(&self.allowed(&before.oracle, seen));
            let unmerged = self.known_values(&before.unmerged);
            _ = write!(text, "{:?}", (unmerged, &before.loosely_read, before.power));
        }
        text
    }

    fn allowed(&self, oracle: &Oracle, seen: &Seen) -> String {
        let block = |block| oracle.digest(block, &seen.began, seen.cut).0;
        (0..self.inside.len()).map(block).collect()
    }

    /// Of some values of each block those that are in some image.
    fn known_values(&self, values: &[Vec<Value>]) -> Vec<BTreeSet<Value>> {
        let known = |(block, values): (usize, &Vec<Value>)| {
            let images = self.disks.iter().filter(|disk| block < disk.image.len());
            let there = images.flat_map(|disk| disk.image.versions(block, &[]));
            let there = there.map(|(value, _)| value);
            there.filter(|value| values.contains(value)).collect()
        };
        values.iter().enumerate().map(known).collect()
    }

    /// The places of the requests, in an order that does not tell which of two equal ones was first.
    fn order(&self) -> Vec<usize> {
        let texts: Vec<String> = self
            .requests
            .iter()
            .map(|r| nameless(&r.digest()))
            .collect();
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|at| &texts[*at]);
        order
    }

    fn under_way(&self, order: &[usize], seen: &Seen) -> String {
        let mut text = String::with_capacity(16_384);
        let requests = order.iter().map(|at| &self.requests[*at]);
        requests.clone().for_each(|r| text.push_str(&r.digest()));
        self.copies
            .iter()
            .for_each(|copy| text.push_str(&copy.digest()));
        let mut inbox: Vec<String> = self
            .inbox
            .iter()
            .map(|event| format!("{event:?}"))
            .collect();
        inbox.sort_by_key(|event| nameless(event));
        text.push_str(&inbox.concat());
        for flush in &self.flushes {
            let members: Vec<MemberId> = flush.covers.iter().map(|(member, _)| *member).collect();
            _ = write!(text, "{:?}", (flush.id, members, flush.given_up));
        }
        let entered = requests.filter_map(|r| {
            let read = r.whole.map(blocks_of).filter(|_| r.kind == Kind::Read);
            Some((r.place?, read.unwrap_or_else(|| r.blocks())))
        });
        let steps = self.copies.iter().flat_map(|copy| &copy.steps);
        let entered: Vec<_> = entered.chain(steps.map(|step| step.fence())).collect();
        _ = write!(text, "{:?}", before(&entered));
        self.tickets
            .iter()
            .for_each(|(number, asker)| text.push_str(&self.asker(*number, asker, seen)));
        let ends = (
            self.crashed,
            self.power,
            self.stopped,
            self.clean,
            self.stopping,
        );
        let ops = (
            self.ops.unclosed,
            self.ops.just_failed,
            self.ops.full,
            &self.ops.stall,
        );
        let told = (&self.promised, &self.fresh, self.limits, &self.away);
        _ = write!(text, "{:?}", (&self.views, ends, ops, told, &self.written));
        let generation = self.generation;
        _ = write!(text, "generation: {generation} {:?}", self.growth);
        text
    }

    fn asker(&self, number: u64, asker: &Asker, seen: &Seen) -> String {
        let Asker::Command(asked) = asker else {
            return format!("{number} {asker:?}");
        };
        let passed = |block: usize| self.oracle.digest(block, &[], seen.cut).1;
        let ended = asked.ended.iter().enumerate();
        let ended: Vec<usize> = ended.map(|(b, n)| n.saturating_sub(passed(b))).collect();
        let idle = asked.idle && asked.requests == self.started;
        let flags = (asked.source, asked.minicopy, idle);
        format!("{:?}", (number, asked.word, asked.member, flags, ended))
    }
}

/// What a mount makes of a block.
fn said(scb: &Scb) -> String {
    let rows: Vec<_> = scb
        .table
        .iter()
        .map(|row| (row.member, row.state))
        .collect();
    format!(
        "{:?}",
        (scb.state, scb.generation, &scb.lineage, scb.clean, rows)
    )
}

/// Who of those that have entered the fence waits for whom.
fn before(entered: &[(u64, std::ops::Range<usize>)]) -> Vec<(usize, usize)> {
    let pairs = (0..entered.len()).flat_map(|a| (0..entered.len()).map(move |b| (a, b)));
    let waits = |(a, b): &(usize, usize)| {
        let ((first, mine), (second, other)) = (&entered[*a], &entered[*b]);
        first < second && mine.start < other.end && other.start < mine.end
    };
    pairs.filter(waits).collect()
}

/// The text of a set without the operations that are over.
fn without_past(set: &str) -> String {
    let Some((start, list)) = set.split_once("operations: [") else {
        return set.to_owned();
    };
    let (mut depth, mut end, mut first, mut kept) = (0, 0, 0, String::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            ']' if depth == 0 => {
                end = at;
                break;
            }
            '}' | ']' | ')' => depth -= 1,
            _ => {}
        }
        if c == '}' && depth == 0 {
            let operation = &list[first..=at];
            let over = ["state: Done", "state: Failed", "state: Cancelled"];
            if !over.iter().any(|state| operation.contains(state)) {
                kept.push_str(operation);
            }
            first = at + 1;
        }
    }
    format!("{start}operations: [{kept}{}", &list[end..])
}

/// What a number in a text is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Sort {
    Epoch,
    Operation,
    Bitmap,
    Flush,
    Generation,
    Name,
    Plain,
}

/// What stands before a number, and what the number is then.
const SORTS: [(&str, Sort); 11] = [
    ("Epoch(", Sort::Epoch),
    ("epoch: ", Sort::Epoch),
    ("OpId(", Sort::Operation),
    ("last_op: ", Sort::Operation),
    ("mount_op: ", Sort::Operation),
    ("BitmapId(", Sort::Bitmap),
    ("last_bitmap: ", Sort::Bitmap),
    ("FlushId(", Sort::Flush),
    ("last_flush: ", Sort::Flush),
    ("Generation(", Sort::Generation),
    ("generation: ", Sort::Generation),
];

/// The length of an identity as text.
const IDENTITY: usize = 36;

/// A number in a text: where it stands, and what it is.
struct Token {
    start: usize,
    end: usize,
    sort: Sort,
    number: u64,
}

/// The numbers of a text.
fn numbers(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let (mut at, mut tokens) = (0, Vec::with_capacity(text.len() / 8));
    while at < bytes.len() {
        let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if !bytes[at].is_ascii_hexdigit() || at > 0 && inside(bytes[at - 1]) {
            at += 1;
            continue;
        }
        let (start, radix) =
            match bytes.get(at + 8) == Some(&b'-') && bytes.get(at + 13) == Some(&b'-') {
                true => (at + IDENTITY - 12, 16),
                false => (at, 10),
            };
        let digit = |b: &u8| char::from(*b).is_digit(radix);
        let digits = bytes[start..].iter().take_while(|b| digit(b)).count();
        let end = start + digits;
        if digits == 0 {
            at += 1;
            continue;
        }
        let number = u64::from_str_radix(&text[start..end], radix).unwrap_or(u64::MAX);
        let sort = sort_of(&text[..at], number);
        tokens.push(Token {
            start: at,
            end,
            sort,
            number,
        });
        at = end;
    }
    tokens
}

/// What a number is, by what stands before it.
fn sort_of(before: &str, number: u64) -> Sort {
    let known = match before.as_bytes() {
        [.., b, b'('] if b.is_ascii_alphabetic() => {
            SORTS.iter().find(|(word, _)| before.ends_with(word))
        }
        [.., b':', b' '] => SORTS.iter().find(|(word, _)| before.ends_with(word)),
        _ => None,
    };
    match known {
        Some((_, sort)) => *sort,
        None if number >= NAMES && number != u64::MAX => Sort::Name,
        None => Sort::Plain,
    }
}

/// A text whose names are all the same.
fn nameless(text: &str) -> String {
    let (mut out, mut done) = (String::with_capacity(text.len()), 0);
    for token in numbers(text)
        .iter()
        .filter(|token| token.sort == Sort::Name)
    {
        out.push_str(&text[done..token.start]);
        out.push('#');
        done = token.end;
    }
    out.push_str(&text[done..]);
    out
}

/// A text as one number, whatever its names are.
fn number(text: &str) -> u64 {
    let tokens = numbers(text);
    let ranks = ranks(&tokens);
    let (mut hasher, mut names, mut done) = (DefaultHasher::new(), HashMap::new(), 0);
    for token in &tokens {
        let number = token.number;
        let rank = match token.sort {
            Sort::Plain => continue,
            Sort::Name => {
                let next = names.len() as u64;
                let (torn, name) = (number >> 31 & 1, number & !(1 << 31));
                *names.entry(name).or_insert(next) | torn << 31
            }
            sort => ranks[&(sort, number)],
        };
        hasher.write(&text.as_bytes()[done..token.start]);
        hasher.write_u64(rank);
        done = token.end;
    }
    hasher.write(&text.as_bytes()[done..]);
    hasher.finish()
}

/// The ranks of numbers among those of their sort.
fn ranks(tokens: &[Token]) -> HashMap<(Sort, u64), u64> {
    let mut used: BTreeMap<Sort, BTreeSet<u64>> = BTreeMap::new();
    for token in tokens {
        if !matches!(token.sort, Sort::Name | Sort::Plain) {
            used.entry(token.sort).or_default().insert(token.number);
        }
    }
    let mut ranks = HashMap::new();
    for (sort, numbers) in used {
        // A bitmap without a number has 0.
        let (mut rank, mut last) = (u64::from(!numbers.contains(&0)), None);
        for number in numbers {
            let gap = last.map_or(0, |last| number - last);
            let most = if sort == Sort::Generation { 2 } else { 1 };
            rank += gap.min(most);
            last = Some(number);
            ranks.insert((sort, number), rank);
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_count_and_ranks_do() {
        let same = |a: &str, b: &str| number(a) == number(b);
        assert!(same(
            "id 1000007, 1000009, 1000007",
            "id 1000001, 1000002, 1000001"
        ));
        assert!(!same(
            "id 1000007, 1000009, 1000007",
            "id 1000001, 1000002, 1000002"
        ));
        assert!(same(
            "Epoch(3), Epoch(9), epoch: 3",
            "Epoch(1), Epoch(2), epoch: 1"
        ));
        assert!(!same("Epoch(3), Epoch(9)", "Epoch(9), Epoch(3)"));
        assert!(!same(
            "Generation(3), Generation(4)",
            "Generation(3), Generation(5)"
        ));
        assert!(same(
            "Generation(3), Generation(9)",
            "Generation(3), Generation(5)"
        ));
        assert!(!same("BitmapId(0)", "BitmapId(2)") && same("BitmapId(1)", "BitmapId(2)"));
        assert!(!same("words: [3]", "words: [4]"));
        let mount = |n: u64| format!("{:?}", uuid::Uuid::from_u64_pair(0, NAMES + n));
        assert!(
            same(&mount(3), &mount(4))
                && !same(
                    &format!("{}{}", mount(3), mount(3)),
                    &format!("{}{}", mount(3), mount(4))
                )
        );
        let torn = 1 << 31;
        assert!(!same(
            "1000007, 1000007",
            &format!("1000007, {}", 1_000_007 | torn)
        ));
    }

    #[test]
    fn operations_that_are_over_do_not_count() {
        let set = "a, operations: [Operation { id: OpId(1), task: Copy { b: [1] }, state: Done }, Operation { id: \
                   OpId(2), state: Running, c: P { d: 1 } }], limits";
        let left = without_past(set);
        assert!(
            !left.contains("OpId(1)") && left.contains("OpId(2)") && left.ends_with("}], limits"),
            "{left}"
        );
    }
}
