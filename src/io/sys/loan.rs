//! Memory that is lent to other threads for the time of a call.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of a thread that is in [`lend`], for other threads to read meanwhile.
#[derive(Clone, Debug)]
pub struct Loan(Arc<Mutex<Option<Lent>>>);

#[derive(Clone, Copy, Debug)]
struct Lent {
    bytes: *const u8,
    len: usize,
}

// SAFETY: the pointer is read in Loan::with alone, where the bytes are borrowed still.
unsafe impl Send for Lent {}

/// Lets other threads read `bytes` until `during` returns: a thread that waits in a system call cannot hand
/// on what it has only borrowed.
pub fn lend<R>(bytes: &[u8], during: impl FnOnce(&Loan) -> R) -> R {
    struct Revoke(Loan);
    impl Drop for Revoke {
        fn drop(&mut self) {
            *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
    thread_local! {
        /// The last loan of the thread, to be used again: lending allocates nothing then.
        static LAST: Cell<Option<Loan>> = const { Cell::new(None) };
    }
    let lent = Lent {
        bytes: bytes.as_ptr(),
        len: bytes.len(),
    };
    // Who has a copy of the last one still must not see these bytes by it.
    let last = LAST.take().filter(|last| Arc::strong_count(&last.0) == 1);
    let loan = last.unwrap_or_else(|| Loan(Arc::default()));
    *loan.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lent);
    let revoke = Revoke(loan);
    let result = during(&revoke.0);
    LAST.set(Some(revoke.0.clone()));
    result
}

impl Loan {
    /// Reads the bytes, if they are lent still; the lender waits for the end of it.
    pub fn with<R>(&self, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Lent { bytes, len } = (*lent)?;
        // SAFETY: `lend` borrows the bytes until it has emptied this option under the lock that is held here,
        // also when it unwinds; a slice's pointer and length are what they were taken from.
        Some(read(unsafe { std::slice::from_raw_parts(bytes, len) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_can_be_read_until_the_lender_goes_on() {
        let (lent_tx, lent) = crossbeam_channel::bounded(1);
        let (go_tx, go) = crossbeam_channel::bounded::<()>(0);
        let lender = std::thread::spawn(move || {
            let bytes = vec![7; 4096];
            lend(&bytes, |loan| {
                lent_tx.send(loan.clone()).unwrap();
                let _ = go.recv();
            });
        });
        let loan = lent.recv().unwrap();
        assert_eq!(loan.with(<[u8]>::to_vec), Some(vec![7; 4096]));
        drop(go_tx);
        lender.join().unwrap();
        assert_eq!(loan.with(<[u8]>::len), None);
        let kept = lend(&[1], Loan::clone);
        lend(&[2], |_| {
            assert_eq!(kept.with(<[u8]>::len), None, "another loan");
        });
        let unwound = std::panic::catch_unwind(|| lend(&[1], |loan| panic!("{loan:?}")));
        assert!(unwound.is_err());
    }
}
