//! Members that are asked through io_uring: any number of requests are under way, and one thread hears how they end.
//!
//! One thread hands over and takes back for a whole ring. Each request costs it less than a wake-up, and while many are
//! under way one system call serves several of them.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::storage::Then;
use super::sys::uring::{Bell, Flights, Order, Payload};

/// Requests that are handed over at once.
const ENTRIES: u32 = 256;
/// Most rings of a process, and processors for each.
const RINGS_MAX: usize = 4;
const PROCESSORS: usize = 4;

/// A ring and the thread that serves it, for as long as the process lives.
#[derive(Debug)]
pub(super) struct Ring {
    orders: Sender<Order<Then>>,
    sleeper: Arc<Sleeper>,
}

/// Whether the thread waits, and how it is woken.
#[derive(Debug)]
struct Sleeper {
    asleep: AtomicBool,
    bell: Arc<Bell>,
}

/// Ends the process when its thread fails: who waits for an answer would wait for ever.
struct Fatal;

impl Drop for Fatal {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

impl Ring {
    /// The ring of one more member; none where the system has none, which is told once.
    pub(super) fn of_member() -> Option<&'static Self> {
        static RINGS: OnceLock<Vec<Ring>> = OnceLock::new();
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let rings = RINGS.get_or_init(|| {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            let most = (processors / PROCESSORS).clamp(1, RINGS_MAX);
            let started: io::Result<Vec<Self>> = (0..most).map(|_| Self::start()).collect();
            started.unwrap_or_else(|error| {
                tracing::info!(%error, "no io_uring: a thread waits for each request of a direct member");
                Vec::new()
            })
        });
        let place = NEXT.fetch_add(1, Ordering::Relaxed);
        rings.get(place.checked_rem(rings.len())?)
    }

    fn start() -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let sleeper = Arc::new(Sleeper {
            asleep: AtomicBool::new(false),
            bell: Arc::clone(&bell),
        });
        let (orders, ordered) = unbounded();
        let (told, begun) = crossbeam_channel::bounded(1);
        let of_thread = Arc::clone(&sleeper);
        thread::Builder::new().name("ring".into()).spawn(move || {
            let _fatal = Fatal;
            // Made here: it takes orders from the thread alone that has made it.
            match Flights::new(ENTRIES, bell) {
                Err(error) => drop(told.send(Err(error))),
                Ok(flights) => {
                    drop(told.send(Ok(())));
                    serve(flights, &ordered, &of_thread);
                }
            }
        })?;
        let ended = || io::Error::other("the thread of the ring has ended");
        begun.recv().map_err(|_| ended())??;
        Ok(Self { orders, sleeper })
    }

    /// Begins a request.
    pub(super) fn begin(
        &self,
        file: Arc<File>,
        (at, len): (u64, usize),
        payload: Payload,
        then: Then,
    ) {
        let order = Order {
            file,
            at,
            len,
            payload,
            tag: then,
        };
        if let Err(lost) = self.orders.send(order) {
            end(
                lost.into_inner(),
                Err(io::Error::other("the ring has ended")),
            );
        }
        // Behind the order: who falls asleep looks once more for orders afterwards.
        if self.sleeper.asleep.swap(false, Ordering::SeqCst) {
            self.sleeper.bell.ring();
        }
    }
}

/// Hands orders over and ends them.
fn serve(mut flights: Flights<Then>, ordered: &Receiver<Order<Then>>, sleeper: &Sleeper) {
    loop {
        for order in ordered.try_iter() {
            if let Err(order) = flights.begin(order) {
                end(order, Err(io::Error::other("the ring is full")));
            }
        }
        sleeper.asleep.store(true, Ordering::SeqCst);
        if ordered.is_empty() {
            if let Err(error) = flights.wait() {
                tracing::error!(%error, "the ring cannot wait");
                std::process::abort();
            }
        }
        sleeper.asleep.store(false, Ordering::SeqCst);
        while let Some((order, bytes)) = flights.ended() {
            let whole = bytes.and_then(|bytes| match bytes == order.len {
                true => Ok(()),
                false => Err(io::Error::other("a part only")),
            });
            end(order, whole);
        }
    }
}

/// Tells how an order has ended. The file is let go of before: who hears of it may lock the image.
fn end(order: Order<Then>, outcome: io::Result<()>) {
    drop(order.file);
    (order.tag)(outcome, order.payload);
}
