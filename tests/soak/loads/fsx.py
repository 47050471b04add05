# Random operations on one file, and on a copy of it in memory that it has to be equal to.
#
#   bout DIR SEED SECONDS    says "seal N" before it seals what it has, waits for a line, and says "sealed N" behind it
#   seal DIR                 the number of the seal that is there, which has to be whole
#   rests DIR                the file is what the last bout has left
import ctypes, mmap, os, random, sys, time, zlib

LIMIT = 1 << 20
PAGE = mmap.PAGESIZE
PUNCH = 0x02 | 0x01  # and the size stays
ZERO = 0x10 | 0x01
libc = ctypes.CDLL(None, use_errno=True)
verb, folder = sys.argv[1], sys.argv[2]
place, copy, seal = (os.path.join(folder, name) for name in ("file", "copy", "seal"))


def fallocate(fd, mode, at, length):
    i64 = ctypes.c_int64
    if libc.fallocate(fd, mode, i64(at), i64(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def write_whole(path, data):
    """Durable under its name, or not there: the promise of fsync and rename."""
    with open(path + ".new", "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.rename(path + ".new", path)
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def read_seal():
    if not os.path.exists(seal):
        return 0
    with open(seal, "rb") as f:
        data = f.read()
    assert len(data) >= 12, "a seal of %d bytes" % len(data)
    body, sum = data[:-4], int.from_bytes(data[-4:], "little")
    assert zlib.crc32(body) == sum, "a broken seal"
    return int.from_bytes(body[:8], "little")


def write_seal(number, data):
    body = number.to_bytes(8, "little") + bytes(data)
    write_whole(seal, body + zlib.crc32(body).to_bytes(4, "little"))


class Bout:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.data = bytearray()
        self.fd = os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self.number = read_seal()

    def span(self, limit):
        at = self.rng.randrange(limit)
        return at, self.rng.randint(1, min(limit - at, 65536))

    def bytes(self, length):
        return self.rng.randbytes(length)

    def place_in_copy(self, at, new):
        if len(self.data) < at:
            self.data.extend(bytes(at - len(self.data)))
        self.data[at:at + len(new)] = new

    def same(self, what, at, found):
        held = self.data[at:at + len(found)]
        if held != found:
            first = next(n for n in range(len(found)) if n >= len(held) or held[n] != found[n])
            raise AssertionError("%s at %d: byte %d differs" % (what, at, at + first))

    def write(self):
        at, length = self.span(LIMIT)
        new = self.bytes(length)
        assert os.pwrite(self.fd, new, at) == length
        self.place_in_copy(at, new)

    def read(self):
        at, length = self.span(LIMIT)
        found = os.pread(self.fd, length, at)
        assert len(found) == max(0, min(length, len(self.data) - at)), "a short read at %d" % at
        self.same("read", at, found)

    def truncate(self):
        size = self.rng.randrange(LIMIT)
        os.ftruncate(self.fd, size)
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def hole(self, mode):
        at, length = self.span(LIMIT)
        fallocate(self.fd, mode, at, length)
        end = min(at + length, len(self.data))
        if at < end:
            self.data[at:end] = bytes(end - at)

    def punch(self):
        self.hole(PUNCH)

    def zero(self):
        self.hole(ZERO)

    def mapped(self):
        at, length = self.span(len(self.data))
        first = at // PAGE * PAGE
        return at, length, mmap.mmap(self.fd, at - first + length, offset=first), at - first

    def map_read(self):
        if self.data:
            at, length, pages, inner = self.mapped()
            with pages:
                self.same("map_read", at, pages[inner:inner + length])

    def map_write(self):
        if self.data:
            at, length, pages, inner = self.mapped()
            new = self.bytes(length)
            with pages:
                pages[inner:inner + length] = new
            self.place_in_copy(at, new)

    def copy_range(self):
        if len(self.data) > 2:
            half = len(self.data) // 2
            at, length = self.span(half)
            length = os.copy_file_range(self.fd, self.fd, length, at, half + at)
            self.place_in_copy(half + at, self.data[at:at + length])

    def sync(self):
        self.rng.choice((os.fsync, os.fdatasync))(self.fd)

    def reopen(self):
        os.close(self.fd)
        self.fd = os.open(place, os.O_RDWR)
        assert os.fstat(self.fd).st_size == len(self.data)

    def forget_cache(self):
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def seal(self):
        self.number += 1
        print("seal", self.number)
        sys.stdin.readline()
        write_seal(self.number, self.data)
        print("sealed", self.number)

    def run(self, seconds):
        print("begin", self.number)
        weighted = ((self.write, 20), (self.read, 20), (self.truncate, 4), (self.punch, 5), (self.zero, 5),
                    (self.map_read, 10), (self.map_write, 10), (self.copy_range, 5), (self.sync, 2),
                    (self.reopen, 2), (self.forget_cache, 2), (self.seal, 1))
        calls, weights = zip(*weighted)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.rng.choices(calls, weights)[0]()
        self.reopen()
        self.same("the end", 0, os.pread(self.fd, LIMIT, 0))
        os.fsync(self.fd)
        self.seal()
        write_whole(copy, self.data)


if verb == "bout":
    Bout(int(sys.argv[3])).run(float(sys.argv[4]))
elif verb == "seal":
    print(read_seal())
elif verb == "rests":
    with open(place, "rb") as a, open(copy, "rb") as b:
        assert a.read() == b.read(), "the file is not what was left"
