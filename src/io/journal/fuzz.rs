//! Any bytes in the files of a journal, and any damage to a journal of any history.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

use std::sync::OnceLock;

use super::backing::Backing;
use super::log::{BATCH_HEAD, Batch, encode_batch};
use super::segment::{Header, Segment, write_snapshot};
use super::writer::Pair;
use super::*;
use crate::set::{BitmapTag, Bytes, Moment};
use crate::testing::fuzz::{Input, flip};

const SET: Uuid = Uuid::from_bytes([9; 16]);
/// A short word at the end, and more words than a mark makes durable at once.
const REGIONS: u64 = 64 * 5 + 7;
const OPTIONS: Options = Options {
    durability: Durability::Power,
    grain_words: 2,
};
/// What may be read or written at once without regard to the length of the file.
const PIECE: usize = 1 << 20;

/// A file in memory, as long as it was written.
#[derive(Clone, Default, Debug)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backing for Memory {
    fn reserve(&self, len: u64, _: bool) -> io::Result<()> {
        let mut bytes = self.bytes();
        let len = usize::try_from(len).expect("a small file").max(bytes.len());
        bytes.resize(len, 0);
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let bytes = self.bytes();
        let fits = buf.len() <= bytes.len().max(PIECE);
        assert!(
            fits,
            "{} bytes of memory for a file of {}",
            buf.len(),
            bytes.len()
        );
        let at = usize::try_from(at).map_err(|_| ErrorKind::UnexpectedEof)?;
        let from = bytes.get(at..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(from.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut file = self.bytes();
        let at = usize::try_from(at).expect("a small file");
        let end = at + bytes.len();
        let len = file.len().max(end);
        file.resize(len, 0);
        file[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

type Files = [Memory; 2];

fn pair(files: &Files) -> Pair {
    [0, 1].map(|file| Box::new(files[file].clone()) as Box<dyn Backing>)
}

fn copy(files: &Files) -> Files {
    [0, 1].map(|file| Memory(Arc::new(Mutex::new(files[file].bytes().clone()))))
}

fn identity() -> Identity {
    Identity {
        set: SET,
        geometry: Geometry::new(Bytes(REGIONS * 4096), 8).expect("valid"),
        boot: Uuid::from_u128(1),
    }
}

fn record(key: u32) -> BitmapRecord {
    let tag = BitmapTag {
        id: BitmapId(key),
        policy: crate::set::Policy::Full,
        created: Moment(u64::from(key) << 20),
        generation: u64::from(key) + 7,
    };
    let code = u8::try_from(key % 10).unwrap_or(0);
    BitmapRecord {
        tag,
        kind: super::record::kind_of(code).expect("a kind"),
        owner: Uuid::from_u128(u128::from(key) << 70),
    }
}

/// A journal without a map, the same one each time.
fn formatted() -> Files {
    let id = identity();
    let files = Files::default();
    let mut layout = Layout::new(id.geometry);
    // It is full after 16 batches.
    layout.log_bytes = 16 * PAGE as u64;
    for file in &files {
        file.reserve(layout.total(), true).expect("in memory");
    }
    let header = Header {
        set: id.set,
        life: log::Life {
            journal: Uuid::from_u128(5),
            number: 1,
        },
        geometry: id.geometry,
        durability: OPTIONS.durability,
        boot: id.boot,
        layout,
    };
    write_snapshot(&files[0], &header, &[]).expect("in memory");
    files
}

fn open(files: &Files) -> Result<(Journal, State), OpenError> {
    open_as(files, &identity())
}

/// As a mount does it, which takes the size of the unit from the journal.
fn open_any(files: &Files) -> Result<(Journal, State), OpenError> {
    match open(files) {
        Err(OpenError::OtherGeometry(geometry)) => {
            let id = identity();
            open_as(files, &Identity { geometry, ..id })
        }
        opened => opened,
    }
}

fn open_as(files: &Files, id: &Identity) -> Result<(Journal, State), OpenError> {
    let (journal, _) = Journal::open_on(pair(files), id, OPTIONS)?;
    let state = State::of(&journal, None);
    Ok((journal, state))
}

fn bits(from: &mut Input<'_>, geometry: Geometry) -> WriteBitmap {
    let map = WriteBitmap::empty(geometry);
    for _ in 0..from.below(4) {
        map.mark(regions(from, geometry));
    }
    map
}

fn regions(from: &mut Input<'_>, geometry: Geometry) -> Regions {
    let first = from.below(REGIONS as usize) as u64;
    let most = if from.byte() < 20 { REGIONS } else { 90 };
    let len = (1 + from.below(most as usize) as u64).min(REGIONS - first);
    let range = geometry.clip(Bytes(first * 4096), Bytes(len * 4096));
    geometry.regions_of(range.expect("it begins inside"))
}

/// What counts as durable of a map; nothing of none.
fn words(journal: &Journal, key: BitmapId) -> Vec<u64> {
    let maps = journal.maps.load();
    let map = maps.iter().find(|m| m.record.tag.id == key);
    map.map_or_else(Vec::new, |m| m.words.iter().collect())
}

/// One change, whatever comes of it.
fn act(journal: &Journal, from: &mut Input<'_>) {
    let geometry = journal.geometry();
    let key = BitmapId(1 + from.below(5) as u32);
    let done = match from.below(12) {
        0 | 1 => journal.add(record(key.0), &bits(from, geometry)),
        2 => journal.remove(key),
        3 => journal.describe(BitmapRecord {
            owner: Uuid::from_u128(from.below(9) as u128),
            ..record(key.0)
        }),
        4 => journal.absorb(key, &bits(from, geometry)),
        5 => {
            let left = bits(from, geometry);
            let before = words(journal, key);
            journal.retain(key, &left);
            let kept = before.iter().zip(left.words()).zip(words(journal, key));
            assert!({ kept }.all(|((before, left), after)| before & left & !after == 0));
            Ok(())
        }
        6 => journal.checkpoint(),
        _ => {
            let other = BitmapId(1 + from.below(5) as u32);
            let regions = regions(from, geometry);
            let done = journal.mark(&[key, other], regions);
            let maps = journal.maps.load();
            let there = |id| maps.iter().any(|m| m.record.tag.id == id);
            let marked = |id| done.is_err() || !there(id) || journal.covers(id, regions);
            assert!(marked(key) && marked(other), "a mark that is not durable");
            done
        }
    };
    if done.is_err() {
        journal.check().expect("a refusal changes nothing");
    }
}

/// A map: its record, the bits that somebody relies on, and those that may be on disk beside them.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Kept {
    record: BitmapRecord,
    live: Vec<u64>,
    may: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct State(Vec<Kept>);

impl State {
    /// What the journal takes for durable, behind another state.
    fn of(journal: &Journal, before: Option<&Self>) -> Self {
        let maps = journal.maps.load();
        let kept = maps.iter().map(|map| {
            let live: Vec<u64> = map.words.iter().collect();
            let old =
                before.and_then(|b| b.0.iter().find(|k| k.record.tag.id == map.record.tag.id));
            let old = old.map_or_else(|| live.clone(), |old| old.may.clone());
            let may = live.iter().zip(old).map(|(a, b)| a | b).collect();
            Kept {
                record: map.record,
                live,
                may,
            }
        });
        Self(kept.collect())
    }

    /// Whether what was read is this state.
    fn is(&self, read: &Self) -> bool {
        let fits = |(kept, read): (&Kept, &Kept)| {
            let bits = kept.live.iter().zip(&kept.may).zip(&read.live);
            kept.record == read.record && { bits }
                .all(|((live, may), read)| live & !read == 0 && read & !may == 0)
        };
        self.0.len() == read.0.len() && self.0.iter().zip(&read.0).all(fits)
    }
}

/// A journal and everything that it ever was.
struct Past {
    files: Files,
    states: Vec<State>,
    /// The state before the last change that wrote something, and whether a batch was all that it wrote.
    before: usize,
    by_batch: bool,
}

/// The newest life, and a checksum of everything.
fn print(files: &Files) -> (u64, u32) {
    let lives = files.iter().filter_map(|file| Segment::read(file).ok());
    let newest = lives.map(|segment| segment.header.life.number).max();
    let sums = files
        .iter()
        .fold(0, |sum, file| crc32c::crc32c_append(sum, &file.bytes()));
    (newest.unwrap_or(0), sums)
}

fn live(from: &mut Input<'_>) -> Past {
    let files = formatted();
    let (journal, state) = open(&files).expect("a new journal");
    let mut past = Past {
        states: vec![state],
        files,
        before: 0,
        by_batch: false,
    };
    let mut print_before = print(&past.files);
    for _ in 0..from.below(60) {
        act(&journal, from);
        let now = print(&past.files);
        if now != print_before {
            past.before = past.states.len() - 1;
            past.by_batch = now.0 == print_before.0;
            print_before = now;
        }
        let state = State::of(&journal, past.states.last());
        past.states.push(state);
    }
    past
}

impl Past {
    /// The state that the journal has, to the last bit that was acknowledged.
    fn is_last(&self, read: &State) -> bool {
        self.states.last().is_some_and(|last| last.is(read))
    }

    /// That state, or the one before the last batch: a batch that is damaged cannot be told from one that was torn.
    fn is_almost_last(&self, read: &State) -> bool {
        let from = if self.by_batch {
            self.before
        } else {
            self.states.len() - 1
        };
        self.states[from..].iter().any(|state| state.is(read))
    }
}

/// A history, then damage: what is read again is what was durable, or the journal is refused.
pub(crate) fn history(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (how, file, place) = (input.below(4), input.below(2), input.below(1 << 24));
    let past = live(&mut input);
    let whole = open(&copy(&past.files)).expect("it is whole").1;
    assert!(
        past.is_last(&whole),
        "{whole:?} and not {:?}",
        past.states.last()
    );
    let damaged = copy(&past.files);
    if how == 3 {
        // As after a write that the disk has lost.
        damaged[file].bytes().clone_from(&formatted()[file].bytes());
    }
    let in_log = hurt(&mut damaged[file].bytes(), how, place);
    match open(&damaged) {
        Ok((_, read)) if in_log => assert!(past.is_almost_last(&read), "{read:?}"),
        Ok((_, read)) => assert!(past.is_last(&read), "{read:?}"),
        Err(error) => says(&error),
    }
}

/// Cuts a file, flips a bit, or makes a page zeros; whether that lies in the log.
fn hurt(bytes: &mut Vec<u8>, how: usize, place: usize) -> bool {
    let len = bytes.len();
    let log_at = usize::try_from(Layout::new(identity().geometry).log_at()).expect("small");
    match how {
        0 => bytes.truncate(place % len),
        1 => flip(bytes, place % (len * 8)),
        2 => bytes[place % (len / PAGE) * PAGE..][..PAGE].fill(0),
        _ => {}
    }
    match how {
        1 => place % (len * 8) / 8 >= log_at,
        2 => place % (len / PAGE) * PAGE >= log_at,
        _ => false,
    }
}

fn says(error: &OpenError) {
    assert!(!error.to_string().is_empty());
    assert!(
        !matches!(error, OpenError::Io(_) | OpenError::InUse),
        "the files can be read: {error}"
    );
}

/// A journal with something in it: two maps in a snapshot, and some batches behind it.
fn sample() -> &'static [Vec<u8>; 2] {
    static SAMPLE: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let files = formatted();
        let (journal, _) = open(&files).expect("a new journal");
        let geometry = journal.geometry();
        let mut from = Input(&[1, 0, 0, 9, 0, 0, 99, 3]);
        journal
            .add(record(1), &bits(&mut from, geometry))
            .expect("added");
        journal
            .add(record(2), &WriteBitmap::full(geometry))
            .expect("added");
        journal.checkpoint().expect("written");
        for at in [3, 70, 200] {
            let range = geometry.clip(Bytes(at * 4096), Bytes(4096));
            let regions = geometry.regions_of(range.expect("inside"));
            journal.mark(&[BitmapId(1)], regions).expect("marked");
        }
        drop(journal);
        files.map(|file| file.bytes().clone())
    })
}

/// Patches of a journal, each with a right checksum where it may have one: of what is accepted nothing is gone the next
/// time, or it is refused then.
pub(crate) fn journal(bytes: &[u8]) {
    batch(bytes);
    let mut input = Input(bytes);
    let files = sample()
        .clone()
        .map(|bytes| Memory(Arc::new(Mutex::new(bytes))));
    while !input.is_empty() {
        patch(&files[input.below(2)], &mut input);
    }
    match open_any(&files) {
        Err(error) => says(&error),
        Ok((journal, read)) => {
            assert!(read.0.len() <= MAPS_MAX);
            let lasting = |(at, kept): (usize, &Kept)| {
                let others = &read.0[..at];
                others
                    .iter()
                    .all(|other| other.record.tag.id != kept.record.tag.id)
            };
            assert!(read.0.iter().enumerate().all(lasting), "one key twice");
            drop(journal);
            match open_any(&files) {
                Err(error) => says(&error),
                Ok((_, again)) => assert!(includes(&again, &read), "{read:?}, then {again:?}"),
            }
        }
    }
}

/// Whether every bitmap is there with all its bits; more is no harm (I1).
fn includes(again: &State, read: &State) -> bool {
    let covers = |more: &[u64], less: &[u64]| {
        more.len() == less.len()
            && more
                .iter()
                .zip(less)
                .all(|(more, less)| more & less == *less)
    };
    let same = again.0.len() == read.0.len();
    same && again.0.iter().zip(&read.0).all(|(more, less)| {
        more.record == less.record && covers(&more.live, &less.live) && covers(&more.may, &less.may)
    })
}

/// Some bytes at some place of a header, a note, a batch, or anywhere; then its checksum, or not.
fn patch(file: &Memory, input: &mut Input<'_>) {
    let mut bytes = file.bytes();
    let log_at = usize::try_from(Layout::new(identity().geometry).log_at()).expect("small");
    let (kind, sealed) = (input.below(5), input.byte() % 4 > 0);
    let (page, len) = match kind {
        0 => (0, 1300),
        1 => (PAGE, 32),
        2 => (log_at + input.below(5) * PAGE, 200),
        3 => (0, bytes.len()),
        _ => {
            let len = bytes.len();
            return bytes.truncate(input.below(len.max(1)));
        }
    };
    let at = page + input.below(len.max(1));
    for place in at..at + 1 + input.below(8) {
        let byte = input.byte();
        // A life that was counted back finds the batches of the one before it: nobody but a forger does that.
        if let Some(place) = bytes.get_mut(place).filter(|_| !(64..72).contains(&place)) {
            *place = byte;
        }
    }
    let Some(page) = bytes.get_mut(page..page + PAGE).filter(|_| sealed) else {
        return;
    };
    let (from, to, sum) = match kind {
        2 => {
            let len = u32::from_le_bytes([page[40], page[41], page[42], page[43]]) as usize;
            (8, BATCH_HEAD.saturating_add(len).min(PAGE), 4)
        }
        _ => (0, PAGE - 4, PAGE - 4),
    };
    let crc = crc32c::crc32c(&page[from..to]);
    page[sum..sum + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Any entries with the head of a batch: what is understood is the same bytes when it is written.
fn batch(bytes: &[u8]) {
    let body = &bytes[..bytes.len().min(PAGE - BATCH_HEAD)];
    let mut page = Vec::new();
    let life = log::Life {
        journal: Uuid::from_u128(5),
        number: 3,
    };
    encode_batch(&mut page, life, 7, &[]);
    page[40..44].copy_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_le_bytes());
    page[BATCH_HEAD..BATCH_HEAD + body.len()].copy_from_slice(body);
    let end = BATCH_HEAD + body.len();
    // The entries are counted by whoever writes them.
    for count in 0..4_u8 {
        page[44] = count;
        let crc = crc32c::crc32c(&page[8..end]);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
        let read = Batch::decode(&page).expect("its checksum is right");
        if let Some(entries) = read.entries() {
            let mut again = Vec::new();
            encode_batch(&mut again, read.life, read.number, &entries);
            assert_eq!(again, page);
        }
    }
    flip(&mut page, bytes.len() * 7919 % (end * 8));
    assert!(Batch::decode(&page).is_none(), "a bit is wrong");
}

#[cfg(test)]
mod tests {
    use super::planted::{Mistake, plant};
    use super::*;
    use crate::testing::Rng;

    /// Histories that find a mistake, of so many.
    fn found(mistake: Mistake, histories: u64) -> usize {
        let fails = |seed: &u64| {
            let mut rng = Rng::new(*seed);
            let bytes: Vec<u8> = (0..700).map(|_| rng.below(256) as u8).collect();
            plant(Some(mistake));
            let told = std::panic::catch_unwind(|| history(&bytes));
            plant(None);
            told.is_err()
        };
        (0..histories).filter(fails).count()
    }

    #[test]
    fn a_journal_with_a_mistake_is_found() {
        for mistake in [Mistake::AbsorbNotDurable, Mistake::RetainDropsMore] {
            assert!(found(mistake, 60) > 0, "{mistake:?}");
        }
    }
}
