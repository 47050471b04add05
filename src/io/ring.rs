//! Members that are asked through io_uring: any number of requests are under way, and one thread hears how they end.
//!
//! Each member has a ring of its own, so that one that hangs holds up no other: the kernel has a limit of its own threads for
//! each ring. The thread hands requests over and takes them back; while many are under way one system call serves several of
//! them.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};

use super::storage::Then;
use super::sys::uring::{Bell, Flights, Order, Payload};

/// Requests that are handed over at once.
const ENTRIES: u32 = 128;

/// The ring of a member. Its thread ends when this is dropped and nothing is under way any more.
#[derive(Debug)]
pub(super) struct Ring {
    /// Nothing only while it is dropped.
    orders: Option<Sender<Order<Then>>>,
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

impl Drop for Ring {
    fn drop(&mut self) {
        self.orders = None;
        self.sleeper.bell.ring();
    }
}

impl Ring {
    /// Starts a ring.
    ///
    /// # Errors
    /// The system's error; `Unsupported` where io_uring cannot be had.
    pub(super) fn start() -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let sleeper = Arc::new(Sleeper {
            asleep: AtomicBool::new(false),
            bell: Arc::clone(&bell),
        });
        let (orders, ordered) = unbounded();
        let (told, begun) = crossbeam_channel::bounded(1);
        let of_thread = Arc::clone(&sleeper);
        thread::Builder::new().name("ring".into()).spawn(move || {
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
        Ok(Self {
            orders: Some(orders),
            sleeper,
        })
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
        let sent = match &self.orders {
            Some(orders) => orders.send(order).map_err(|lost| lost.into_inner()),
            None => Err(order),
        };
        if let Err(order) = sent {
            return end(order, Err(io::Error::other("the ring has ended")));
        }
        // Behind the order: who falls asleep looks once more for orders afterwards.
        if self.sleeper.asleep.swap(false, Ordering::SeqCst) {
            self.sleeper.bell.ring();
        }
    }
}

/// Hands orders over and ends them.
fn serve(mut flights: Flights<Then>, ordered: &Receiver<Order<Then>>, sleeper: &Sleeper) {
    // Before all else when this unwinds: who waits for an answer would wait for ever.
    let _fatal = Fatal;
    while take(&mut flights, ordered) || flights.under_way() > 0 {
        sleeper.asleep.store(true, Ordering::SeqCst);
        if ordered.is_empty() {
            if let Err(error) = flights.wait() {
                tracing::error!(%error, "the ring of a member cannot wait");
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

/// Hands over what was ordered; false when nothing can be ordered any more.
fn take(flights: &mut Flights<Then>, ordered: &Receiver<Order<Then>>) -> bool {
    loop {
        match ordered.try_recv() {
            Err(end) => return end == TryRecvError::Empty,
            Ok(order) => {
                if let Err(order) = flights.begin(order) {
                    end(order, Err(io::Error::other("the ring is full")));
                }
            }
        }
    }
}

/// Tells how an order has ended. The file is let go of before: who hears of it may lock the image.
fn end(order: Order<Then>, outcome: io::Result<()>) {
    drop(order.file);
    (order.tag)(outcome, order.payload);
}
