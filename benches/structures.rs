//! What a request costs beside its members, in parts: the fence, the View, the bitmaps, and the whole path over members
//! that take everything at once.
//!
//! Each thread has a part of the unit to itself. What is shown is the time of an operation multiplied by the share of a
//! processor that its thread has. On a machine that does nothing else that is processor time: where threads share nothing,
//! it is the same for any number of them, also for more than there are processors.

use std::hint::black_box;
use std::io;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, measurement::WallTime};
use shadowset::io::{Seek, Storage, Zero, Zeroed};
use shadowset::server::bare::Bare;
use shadowset::server::fence::Fence;
use shadowset::set::{BlockRange, Bytes, Geometry};

const THREADS: [u64; 3] = [1, 2, 8];
const BITMAPS: [usize; 5] = [0, 1, 2, 4, 8];
const MEMBERS: usize = 2;

const REQUEST: u64 = 4096;
/// Bytes of the unit that one thread has.
const PART: u64 = 128 << 20;
/// Requests that fit into it.
const PLACES: u64 = PART / REQUEST;

/// A member that takes everything and keeps nothing.
#[derive(Debug)]
struct Sink;

impl Storage for Sink {
    fn len(&self) -> u64 {
        8 * PART
    }

    fn measure(&self) -> io::Result<u64> {
        Ok(self.len())
    }

    fn align(&self) -> u64 {
        1
    }

    fn read_at(&self, buf: &mut [u8], _: u64) -> io::Result<()> {
        black_box(buf);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], _: u64) -> io::Result<()> {
        black_box(buf);
        Ok(())
    }

    fn zero_at(&self, _: u64, bytes: u64, _: Zero) -> io::Result<Zeroed> {
        let written = false;
        Ok(Zeroed { bytes, written })
    }

    fn allocate(&self, _: u64, len: u64) -> io::Result<u64> {
        Ok(len)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn seek(&self, at: u64, _: Seek) -> io::Result<Option<u64>> {
        Ok(Some(at))
    }

    fn finds_holes(&self) -> bool {
        false
    }
}

fn geometry() -> Option<Geometry> {
    Geometry::new(Bytes(8 * PART), 127).ok()
}

fn unit(bitmaps: usize) -> Option<Bare> {
    let member = || Arc::new(Sink) as Arc<dyn Storage>;
    let members: Vec<_> = (0..MEMBERS).map(|_| member()).collect();
    let unit = Bare::new(geometry()?, &members, bitmaps)?;
    // Regions that are marked already are what a write finds.
    let all = (0..8 * PART).step_by(1 << 20);
    all.map(|at| unit.permit(at, 1 << 20).ok())
        .collect::<Option<()>>()?;
    Some(unit)
}

/// Where a thread's request goes.
fn place(thread: u64, turn: u64) -> u64 {
    thread * PART + turn % PLACES * REQUEST
}

/// The time of `turns` operations of each thread, in shares of processors.
fn time(threads: u64, turns: u64, run: &(impl Fn(u64, u64) + Sync)) -> Duration {
    let start = Barrier::new(usize::try_from(threads).unwrap_or(1));
    let work = |thread: u64| {
        start.wait();
        let begun = Instant::now();
        (0..turns).for_each(|turn| run(thread, turn));
        (begun, Instant::now())
    };
    let times: Vec<_> = thread::scope(|scope| {
        let (work, own) = (&work, 0..threads);
        let all: Vec<_> = own
            .map(|thread| scope.spawn(move || work(thread)))
            .collect();
        all.into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    let (begun, ended) = (
        times.iter().map(|t| t.0).min(),
        times.iter().map(|t| t.1).max(),
    );
    let passed = begun
        .zip(ended)
        .map(|(begun, ended)| ended - begun)
        .unwrap_or_default();
    let processors = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let busy = threads.min(processors) as f64 / threads as f64;
    passed.mul_f64(busy)
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn on_threads(group: &mut Group<'_>, name: &str, run: impl Fn(u64, u64) + Sync) {
    for threads in THREADS {
        let id = BenchmarkId::new(name, format!("{threads} threads"));
        group.bench_function(id, |bench| {
            bench.iter_custom(|turns| time(threads, turns, &run));
        });
    }
}

fn parts(criterion: &mut Criterion) -> Option<()> {
    let mut group = criterion.benchmark_group("part");
    let (geometry, fence) = (geometry()?, Arc::new(Fence::default()));
    let blocks = |at| -> Option<BlockRange> {
        Some(geometry.clip(Bytes(at), Bytes(REQUEST)).ok()?.blocks())
    };
    on_threads(&mut group, "fence", |thread, turn| {
        drop(black_box(
            blocks(place(thread, turn)).map(|range| fence.acquire(range)),
        ));
    });
    let unit = unit(0)?;
    on_threads(&mut group, "View", |_, _| {
        black_box(unit.pin());
    });
    on_threads(&mut group, "fence and View", |thread, turn| {
        assert!(unit.enter(place(thread, turn), REQUEST).is_ok());
    });
    group.finish();
    Some(())
}

fn with_bitmaps(criterion: &mut Criterion) -> Option<()> {
    let bytes = [7; REQUEST as usize];
    for bitmaps in BITMAPS {
        let unit = unit(bitmaps)?;
        let name = format!("{bitmaps} bitmaps");
        let mut group = criterion.benchmark_group("permit");
        on_threads(&mut group, &name, |thread, turn| {
            assert!(unit.permit(place(thread, turn), REQUEST).is_ok());
        });
        group.finish();
        let mut group = criterion.benchmark_group("write");
        on_threads(&mut group, &name, |thread, turn| {
            let written = Box::new(|outcome: Result<(), _>| assert!(outcome.is_ok()));
            unit.pipeline()
                .write_then(place(thread, turn), &bytes, written);
        });
        group.finish();
    }
    Some(())
}

fn reads(criterion: &mut Criterion) -> Option<()> {
    let unit = unit(0)?;
    let mut group = criterion.benchmark_group("read");
    on_threads(&mut group, "0 bitmaps", |thread, turn| {
        let mut bytes = [0; REQUEST as usize];
        let read = Box::new(|outcome: Result<&[u8], _>| assert!(outcome.is_ok()));
        unit.pipeline()
            .read_then(place(thread, turn), &mut bytes, read);
    });
    group.finish();
    Some(())
}

fn main() {
    let second = Duration::from_secs(1);
    let criterion = Criterion::default().sample_size(20).without_plots();
    let criterion = criterion.warm_up_time(second / 4).measurement_time(second);
    let mut criterion = criterion.configure_from_args();
    for measure in [parts, with_bitmaps, reads] {
        assert!(measure(&mut criterion).is_some(), "a unit of two members");
    }
    criterion.final_summary();
}
