//! The thread that hears of each change of the unit, for those who wait for one outside of it.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Sender, bounded, select};

use super::handles::{Bell, Handles, wake};
use crate::control::Tree;

/// A thread that wakes those who poll; it serves no request, so a notification cannot wait for itself.
#[derive(Debug)]
pub(super) struct Notifier {
    /// Rings for it.
    pub(super) bell: Bell,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    /// Starts it; whenever it is rung for, `also` is told too.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn start(
        handles: Arc<Handles>,
        tree: Arc<Tree>,
        also: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let (bell, rings) = Bell::new();
        let (stop, stopped) = bounded::<()>(0);
        let listen = move || {
            loop {
                select! {
                    recv(rings) -> ring => match ring {
                        Ok(()) => {
                            wake(&handles, &tree);
                            also();
                        }
                        Err(_) => return,
                    },
                    recv(stopped) -> _ => return,
                }
            }
        };
        let thread = thread::Builder::new()
            .name("notifier".into())
            .spawn(listen)?;
        Ok(Self {
            bell,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that wakes those who poll has failed");
        }
    }
}
