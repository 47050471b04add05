//! What the thread that decides about a mount is told by the others, and what wakes it.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crossbeam_channel::Sender;

/// What the deciding thread is told.
#[derive(Debug)]
pub(super) enum News {
    /// A worker has ended, as all do when the unit is unmounted.
    WorkerEnded,
    /// All workers have ended.
    Ended(io::Result<()>),
    /// The set was closed by a command.
    Dissolved,
}

/// Tells the deciding thread something and wakes it.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    pub(super) news: Sender<News>,
    pub(super) bell: Arc<UnixStream>,
}

impl Teller {
    pub(super) fn tell(&self, news: News) {
        // When nobody listens any more, nothing is to be decided.
        if self.news.send(news).is_ok() {
            let _ = (&*self.bell).write(&[0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use crossbeam_channel::unbounded;

    use super::*;
    use crate::io::sys;

    #[test]
    fn news_wake_the_one_who_decides() {
        let (news_tx, news) = unbounded();
        let (bell, bell_tx) = UnixStream::pair().expect("a pair");
        let teller = Teller {
            news: news_tx,
            bell: Arc::new(bell_tx),
        };
        teller.tell(News::WorkerEnded);
        let events = sys::poll(&[(bell.as_fd(), sys::POLL_IN)], None).expect("woken");
        assert_ne!(events[0] & sys::POLL_IN, 0);
        assert!(matches!(news.try_recv(), Ok(News::WorkerEnded)));
        drop((news, bell));
        teller.tell(News::WorkerEnded);
    }
}
