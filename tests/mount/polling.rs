//! poll(2) and epoll on the control tree: woken by a change, and by nothing else.

use crate::bed::{MIB, Unit};

/// Waiting for a change of a file after it was read; answers with the milliseconds until the wake.
const WAIT: &str = "
def opened(name):
    f = os.open(S + '/' + name, os.O_RDONLY)
    os.read(f, 1 << 20)
    return f
def woken(f, ms):
    p = select.poll()
    p.register(f, select.POLLPRI)
    return [e for _, e in p.poll(ms) if e & select.POLLPRI]
def command(text):
    c = os.open(C, os.O_WRONLY)
    os.write(c, text)
    os.close(c)
";

#[test]
fn a_change_wakes_and_its_reading_ends_the_wake() {
    let unit = Unit::new(2, 4 * MIB);
    unit.python(&format!(
        "{WAIT}
files = [opened(n) for n in ['status.json', 'status', 'events', 'members/m2/state']]
quiet = opened('members/m1/state')
steady = opened('state')
for f in files + [quiet, steady]: assert not woken(f, 0), f
command(b'detach m2 policy=minicopy')
for f in files: assert woken(f, 5000), f
assert not woken(quiet, 100)
assert not woken(steady, 100)
again = opened('status.json')
assert not woken(again, 100)
for f in files:
    os.lseek(f, 0, 0); os.read(f, 1 << 20)
"
    ));
}

#[test]
fn a_waiter_sleeps_until_the_change_comes() {
    let unit = Unit::new(2, 4 * MIB);
    unit.python(&format!(
        "{WAIT}
f = opened('members/m2/state')
started = time.monotonic()
child = os.fork()
if child == 0:
    e = select.epoll()
    e.register(f, select.EPOLLPRI)
    os._exit(0 if e.poll(10) and time.monotonic() - started < 8 else 1)
assert not woken(f, 200)
command(b'detach m2')
pid, status = os.waitpid(child, 0)
assert status == 0, status
"
    ));
}

#[test]
fn a_copy_wakes_the_readers_of_its_progress() {
    let unit = Unit::new(2, 64 * MIB);
    unit.sh("head -c 64M /dev/urandom | dd of=$U bs=1M conv=notrunc iflag=fullblock status=none");
    unit.accepted("detach m2 policy=none");
    unit.python(&format!(
        "{WAIT}
command(b'attach m2')
states = set()
while True:
    f = opened('status.json')
    os.lseek(f, 0, 0)
    s = json.loads(os.pread(f, 1 << 20, 0))
    states.add(s['state'])
    if s['operations'][-1]['state'] == 'done': break
    assert woken(f, 10000), 'the end was not told'
    os.close(f)
assert states >= {{'steady'}}, states
"
    ));
    assert_eq!(unit.state_of("m2"), "source");
}
