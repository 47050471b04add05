//! Reads and writes that are under way together in one io_uring, each with what belongs to it.
//!
//! The kernel reads and fills memory of this process behind the back of the compiler, so what it may touch is owned
//! here until it has answered.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::super::slots::Slot;

/// In place of a number of an order.
const BELL: u64 = u64::MAX;

/// How long the kernel is left alone that has no memory.
const PAUSE: Duration = Duration::from_millis(1);

/// The memory of a request.
#[derive(Debug)]
pub enum Payload {
    /// To be filled.
    Room(Slot),
    /// To be written, to several files at once as it may be.
    Data(Arc<Slot>),
}

/// A request of whole blocks of one file.
#[derive(Debug)]
pub struct Order<T> {
    /// Opened to be read and written.
    pub file: Arc<File>,
    /// First byte.
    pub at: u64,
    /// Bytes, no more than the memory has.
    pub len: usize,
    /// Read or write, and the memory.
    pub payload: Payload,
    /// What belongs to it.
    pub tag: T,
}

/// Ends a wait of another thread.
#[derive(Debug)]
pub struct Bell(File);

impl Bell {
    /// A bell that has not rung.
    ///
    /// # Errors
    /// The system's error.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = super::check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
        // SAFETY: the descriptor is new and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }.into()))
    }

    /// Rings. It fails only when nobody has heard it for 2^64 times.
    pub fn ring(&self) {
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }
}

/// A ring, its orders, and the bell that ends its wait.
pub struct Flights<T> {
    ring: IoUring,
    /// Orders that the kernel has, by number.
    orders: Vec<Option<Order<T>>>,
    /// Numbers that no order has.
    free: Vec<usize>,
    bell: Arc<Bell>,
    /// Where the bell's count goes; boxed, so that it stays where it is.
    heard: Box<u64>,
    /// Whether the kernel waits for the bell.
    listens: bool,
}

impl<T> std::fmt::Debug for Flights<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut flights = f.debug_struct("Flights");
        flights
            .field("under_way", &self.under_way())
            .finish_non_exhaustive()
    }
}

impl<T> Flights<T> {
    /// A ring that only the calling thread may use, with room for so many requests between two waits.
    ///
    /// # Errors
    /// The system's error; `Unsupported` where io_uring is forbidden or lacks what is needed.
    pub fn new(entries: u32, bell: Arc<Bell>) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        // Completions are worked off by the thread that waits for them, and disturb no other.
        builder.setup_single_issuer().setup_defer_taskrun();
        builder.setup_cqsize(4 * entries);
        let ring = builder
            .build(entries)
            .map_err(|e| io::Error::new(ErrorKind::Unsupported, e))?;
        Ok(Self {
            ring,
            orders: Vec::new(),
            free: Vec::new(),
            bell,
            heard: Box::new(0),
            listens: false,
        })
    }

    /// Orders that the kernel has.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.orders.len() - self.free.len()
    }

    /// Takes an order; the kernel gets it at the next wait at the latest.
    ///
    /// # Errors
    /// The order, when the kernel takes no more now.
    pub fn begin(&mut self, mut order: Order<T>) -> Result<(), Order<T>> {
        let number = self.free.pop().unwrap_or_else(|| {
            self.orders.push(None);
            self.orders.len() - 1
        });
        let entry = entry(&mut order).user_data(number as u64);
        self.orders[number] = Some(order);
        if self.push(&entry) {
            return Ok(());
        }
        self.free.push(number);
        match self.orders[number].take() {
            Some(order) => Err(order),
            None => Ok(()),
        }
    }

    /// Waits until an order has ended or the bell has rung, unless one has already.
    ///
    /// # Errors
    /// The system's error.
    pub fn wait(&mut self) -> io::Result<()> {
        if !self.listens {
            let fd = types::Fd(self.bell.0.as_raw_fd());
            let heard: *mut u64 = &raw mut *self.heard;
            let entry = opcode::Read::new(fd, heard.cast(), 8).build();
            self.listens = self.push(&entry.user_data(BELL));
        }
        loop {
            match self.ring.submit_and_wait(1) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Completions have to be taken first.
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => return Ok(()),
                // No memory for a moment; what is in the queue stays there.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM)) => {
                    return super::poll(&[], Some(PAUSE)).map(drop);
                }
                other => return other.map(drop),
            }
        }
    }

    /// An order that has ended, and the bytes of it that were read or written.
    pub fn ended(&mut self) -> Option<(Order<T>, io::Result<usize>)> {
        loop {
            let done: cqueue::Entry = self.ring.completion().next()?;
            if done.user_data() == BELL {
                self.listens = false;
                continue;
            }
            let number = usize::try_from(done.user_data()).ok()?;
            let Some(order) = self.orders.get_mut(number).and_then(Option::take) else {
                continue;
            };
            self.free.push(number);
            let bytes = usize::try_from(done.result())
                .map_err(|_| io::Error::from_raw_os_error(-done.result()));
            return Some((order, bytes));
        }
    }

    /// Puts an entry into the queue; makes room by handing it over when it is full.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        for _ in 0..2 {
            // SAFETY: what the entry points to is owned by `self`: memory and file of an order until its completion
            // has been seen, the bell and its count for good. `drop` waits for all of them.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return true;
            }
            let _ = self.ring.submit();
        }
        false
    }
}

/// A slot stays where it is while it is owned: one to be filled is owned by its order alone, one to be written is shared
/// and therefore never changed.
fn entry<T>(order: &mut Order<T>) -> squeue::Entry {
    let fd = types::Fd(order.file.as_raw_fd());
    let len = |room: usize| {
        assert!(order.len <= room, "{} bytes in {room}", order.len);
        u32::try_from(order.len).unwrap_or(u32::MAX)
    };
    match &mut order.payload {
        Payload::Room(slot) => {
            let len = len(slot.len());
            let entry = opcode::Read::new(fd, slot.as_mut_ptr(), len);
            entry.offset(order.at).build()
        }
        Payload::Data(slot) => {
            let entry = opcode::Write::new(fd, slot.as_ptr(), len(slot.len()));
            entry.offset(order.at).build()
        }
    }
}

impl<T> Drop for Flights<T> {
    /// The kernel has the memory of orders until they have ended.
    fn drop(&mut self) {
        while self.under_way() > 0 || self.listens {
            self.bell.ring();
            if self.wait().is_err() {
                // Nobody can tell what the kernel still touches.
                std::process::abort();
            }
            while self.ended().is_some() {}
        }
    }
}
