//! What a mark costs, beside a bare write and sync: numbers to print, run by hand.

use std::fs::File;
use std::sync::Barrier;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use super::disk::Rng;
use super::threads::Held;
use super::*;

const BARE_BYTES: u64 = 8 << 20;
/// Marks of one thread between two stretches of bare writes.
const STRETCH: usize = 20;

/// A file that was written once, and where the next page goes.
struct Bare(File, u64);

impl Bare {
    fn new(dir: &Path) -> Self {
        let file = open_file(&dir.join("bare"), true).unwrap();
        file.write_all_at(&vec![0; BARE_BYTES as usize], 0).unwrap();
        file.sync_all().unwrap();
        Self(file, 0)
    }

    fn write(&mut self) -> Duration {
        let begin = Instant::now();
        self.0.write_all_at(&[7; PAGE], self.1).unwrap();
        self.0.sync_data().unwrap();
        self.1 = (self.1 + PAGE as u64) % BARE_BYTES;
        begin.elapsed()
    }
}

/// p50 and p99.
fn show(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100];
    format!("p50 {:>9.1?} p99 {:>9.1?}", at(50), at(99))
}

/// First regions of all groups, in random order.
fn groups(g: Geometry, grain: u32) -> Vec<u64> {
    let mut firsts: Vec<u64> = (0..g.regions()).step_by(64 * grain as usize).collect();
    let mut rng = Rng::new(1);
    for i in (1..firsts.len()).rev() {
        firsts.swap(i, rng.below(i as u64 + 1) as usize);
    }
    firsts
}

/// A journal in `dir` with one map, and the number of its syncs.
fn counted(dir: &Path, g: Geometry, options: Options) -> (Journal, Arc<AtomicU64>) {
    drop(Journal::create(dir, SET, g, options).unwrap());
    let syncs = Arc::new(AtomicU64::new(0));
    let pair = FILES.map(|name| -> Box<dyn Backing> {
        let file = open_file(&dir.join(name), false).unwrap();
        Box::new(Held {
            file: Box::new(file),
            syncs: Arc::clone(&syncs),
            go: Arc::default(),
        })
    });
    let (journal, _) = Journal::open_on(pair, &Identity::of(SET, g), options).unwrap();
    journal.add(record(1), &WriteBitmap::empty(g)).unwrap();
    (journal, syncs)
}

fn measure(unit_bytes: u64, grain: u32, threads: usize, marks: usize) {
    let dir = tempfile::tempdir().unwrap();
    let g = Geometry::new(Bytes(unit_bytes), 127).unwrap();
    let options = Options {
        durability: Durability::Power,
        grain_words: grain,
    };
    let (journal, syncs) = counted(dir.path(), g, options);
    let firsts = groups(g, grain);
    let before = syncs.load(Ordering::SeqCst);
    let (mut bare, barrier) = (Bare::new(dir.path()), Barrier::new(threads));
    let mut plain = Vec::new();
    let next = AtomicU64::new(0);
    let run = |mut plain: Option<&mut Vec<Duration>>, bare: &mut Option<&mut Bare>| {
        let mut times = Vec::new();
        for _ in 0..marks / threads / STRETCH {
            for _ in 0..STRETCH {
                let at = firsts[next.fetch_add(1, Ordering::SeqCst) as usize];
                let size = g.region_bytes();
                let range = g.clip(Bytes(at * size), Bytes(1)).unwrap();
                let regions = g.regions_of(range);
                let begin = Instant::now();
                journal.mark(&[BitmapId(1)], regions).unwrap();
                times.push(begin.elapsed());
            }
            barrier.wait();
            if let (Some(plain), Some(bare)) = (&mut plain, bare.as_mut()) {
                plain.extend((0..STRETCH * threads).map(|_| bare.write()));
            }
            barrier.wait();
        }
        times
    };
    let times = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .map(|_| scope.spawn(|| run(None, &mut None)))
            .collect();
        let mut times = run(Some(&mut plain), &mut Some(&mut bare));
        others
            .into_iter()
            .for_each(|t| times.extend(t.join().unwrap()));
        times
    });
    let (count, syncs) = (times.len() as f64, syncs.load(Ordering::SeqCst) - before);
    println!(
        "{:>5} GiB, {grain:>2} words, {threads:>2} threads, {count:>4} marks: {}, {:.3} syncs per mark; bare: {}",
        unit_bytes >> 30,
        show(times),
        syncs as f64 / count,
        show(plain)
    );
}

/// Announcements of so many threads to clean groups, one after the other, in a message mode.
fn announce(settings: MessageSettings, threads: u64, announcements: u64) -> String {
    let dir = tempfile::tempdir().unwrap();
    let g = Geometry::new(Bytes(1 << 40), 127).unwrap();
    let (journal, _) = counted(dir.path(), g, POWER);
    journal.set_messages(settings);
    let firsts = groups(g, POWER.grain_words);
    let next = AtomicU64::new(0);
    let run = || {
        let mut times = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::SeqCst);
            if at >= announcements {
                return times;
            }
            let bytes = g.clip(Bytes(firsts[at as usize] * g.region_bytes()), Bytes(1));
            let begin = Instant::now();
            journal
                .mark(&[BitmapId(1)], g.regions_of(bytes.unwrap()))
                .unwrap();
            times.push(begin.elapsed());
        }
    };
    let begin = Instant::now();
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        all.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let (took, counts) = (begin.elapsed().as_secs_f64(), journal.gate.counts());
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100].as_micros();
    let rate = announcements as f64 / took;
    let commits = counts.commits() as f64 / announcements as f64;
    let (p50, p99, switches) = (at(50), at(99), counts.switches());
    format!("{rate:.0} | {p50} | {p99} | {commits:.2} | {switches} |")
}

/// Set `TMPDIR` to the file system that is to be measured.
#[test]
#[ignore = "prints numbers of this machine"]
fn announcements_in_each_message_mode() {
    let manual = MessageSettings {
        mode: MessageMode::Manual,
        ..MessageSettings::default()
    };
    let modes = [
        ("auto", MessageSettings::default()),
        ("manual, 100 and 10", manual),
        ("manual, always single", threads::single()),
        (
            "manual, always buffered",
            threads::buffered(manual.interval_ms),
        ),
    ];
    println!("| mode | threads | announcements/s | p50 us | p99 us | commits each | switches |");
    for threads in [1, 4, 16] {
        for (name, settings) in modes {
            let some = if name.ends_with("buffered") && threads < 9 {
                400
            } else {
                4000
            };
            println!(
                "| {name} | {threads} | {}",
                announce(settings, threads, some)
            );
        }
    }
}

#[test]
#[ignore = "prints numbers of this machine"]
fn marks_beside_bare_writes() {
    for threads in [1, 4, 16] {
        for grain in [1, 8, 64] {
            measure(1 << 40, grain, threads, 960);
        }
    }
    measure(1 << 40, 8, 1, 3000);
}
