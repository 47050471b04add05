//! Any bytes that a program says at the socket.

#![allow(clippy::expect_used, reason = "a test ends at the first surprise")]

use std::io::Read;

use super::*;
use crate::control::Unit;
use crate::control::logbook::Logbook;
use crate::control::testing::Fake;
use crate::server::{Done, EventRecord, Published, Request};

/// Its state is another one whenever it is looked at, with its number as the label: nobody waits for the next one.
pub(super) struct Restless(pub(super) Arc<Fake>);

impl Unit for Restless {
    fn state(&self) -> Arc<Published> {
        self.0.change(|state| state.label = state.seq.to_string());
        self.0.state()
    }

    fn events(&self) -> Vec<EventRecord> {
        self.0.events()
    }

    fn submit(&self, request: Request, done: Done) {
        self.0.submit(request, done);
    }
}

/// Each line is answered as long as lines are whole, in the form that a client reads; nobody waits for a program
/// that says no more.
pub(crate) fn socket(bytes: &[u8]) {
    let tree = Tree::new(Arc::new(Restless(Fake::new())), Arc::<Logbook>::default());
    let served = Shared::of(Arc::new(tree));
    let (mut client, server) = UnixStream::pair().expect("a pair");
    // More than a socket takes at once would wait for the one who reads it here.
    let bytes = &bytes[..bytes.len().min(2 * COMMAND_BYTES)];
    client.write_all(bytes).expect("said");
    client.shutdown(Shutdown::Write).expect("said all");
    let told = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut told = Vec::new();
            // What was not read makes the end a reset.
            let _ = client.read_to_end(&mut told);
            told
        });
        let _ = served.serve(&server);
        drop(server);
        reader.join().expect("read")
    });
    let mut told = told.as_slice();
    let mut answers = 0;
    while !told.is_empty() {
        told = answered(told);
        answers += 1;
    }
    let whole = bytes.split_inclusive(|byte| *byte == b'\n');
    let most = whole.count();
    assert!(answers <= most, "{answers} answers to {most} lines");
}

/// Takes one answer away.
fn answered(told: &[u8]) -> &[u8] {
    let end = told.iter().position(|byte| *byte == b'\n').expect("a head");
    let head = std::str::from_utf8(&told[..end]).expect("a head of text");
    let numbers: Vec<usize> = head
        .split(' ')
        .map(|n| n.parse().expect("numbers"))
        .collect();
    let [errno, len, _] = numbers[..] else {
        panic!("{head}: three numbers");
    };
    let (text, rest) = told[end + 1..].split_at(len);
    let text = std::str::from_utf8(text).expect("text");
    assert!(
        errno == 0 || !text.trim().is_empty(),
        "{head}: says nothing"
    );
    rest
}
