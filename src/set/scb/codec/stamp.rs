//! The bytes of a stamp in a storage control block.

use super::{Reader, ScbError, Writer};
use crate::set::geometry::Lbn;
use crate::set::stamp::{DeviceFacts, Facts, FileFacts, FileTime, SAMPLES_MAX, Sample, Stamp};

/// Bytes of a stamp.
pub(super) const STAMP_BYTES: usize = HEAD_BYTES + SAMPLES_MAX * SAMPLE_ENTRY;
const HEAD_BYTES: usize = 64;
const SAMPLE_ENTRY: usize = 16;
/// Not zero, so that a stamp which was wiped is none.
const FILE: u8 = 1;
const DEVICE: u8 = 2;
const NANOS: u32 = 1_000_000_000;

impl Writer {
    pub(super) fn stamp(&mut self, stamp: &Stamp) {
        let start = self.at;
        let kind = match stamp.facts {
            Facts::File(_) => FILE,
            Facts::Device(_) => DEVICE,
        };
        let samples = super::short(stamp.samples.len());
        self.put(&[kind, samples, u8::from(stamp.opened), u8::from(stamp.kept)]);
        self.skip_to(start + 8);
        self.put(&stamp.size.to_le_bytes());
        match &stamp.facts {
            Facts::File(file) => self.file(file),
            Facts::Device(device) => {
                self.put(&device.diskseq.to_le_bytes());
                self.put(&device.written.to_le_bytes());
                self.put(device.boot.as_bytes());
            }
        }
        self.skip_to(start + HEAD_BYTES);
        for sample in &stamp.samples {
            self.put(&sample.at.0.to_le_bytes());
            self.put(&sample.hash.to_le_bytes());
        }
        self.skip_to(start + STAMP_BYTES);
    }

    fn file(&mut self, file: &FileFacts) {
        self.put(&file.device.to_le_bytes());
        self.put(&file.inode.to_le_bytes());
        self.put(&file.blocks.to_le_bytes());
        self.put(&file.mtime.0.to_le_bytes());
        self.put(&file.ctime.0.to_le_bytes());
        self.put(&file.mtime.1.to_le_bytes());
        self.put(&file.ctime.1.to_le_bytes());
    }
}

impl Reader<'_> {
    pub(super) fn stamp(&mut self) -> Result<Stamp, ScbError> {
        let start = self.at;
        let (kind, samples) = (self.u8()?, usize::from(self.u8()?));
        let (opened, kept) = (self.mark()?, self.mark()?);
        self.at = start + 8;
        let size = self.u64()?;
        let facts = match kind {
            FILE => Facts::File(self.file()?),
            DEVICE => Facts::Device(DeviceFacts {
                diskseq: self.u64()?,
                written: self.u64()?,
                boot: self.uuid()?,
            }),
            other => return Err(ScbError::field("kind of stamp", other)),
        };
        self.at = start + HEAD_BYTES;
        if samples > SAMPLES_MAX {
            return Err(ScbError::field("number of samples", samples));
        }
        let samples = (0..samples).map(|_| {
            Ok(Sample {
                at: Lbn(self.u64()?),
                hash: self.u64()?,
            })
        });
        let samples = samples.collect::<Result<Vec<_>, ScbError>>()?;
        if samples.windows(2).any(|pair| pair[0].at >= pair[1].at) {
            return Err(ScbError::field("samples", "places that do not rise"));
        }
        Ok(Stamp {
            size,
            facts,
            samples,
            opened,
            kept,
        })
    }

    fn mark(&mut self) -> Result<bool, ScbError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(ScbError::field("mark of a stamp", other)),
        }
    }

    fn file(&mut self) -> Result<FileFacts, ScbError> {
        let (device, inode, blocks) = (self.u64()?, self.u64()?, self.u64()?);
        let seconds = (self.i64()?, self.i64()?);
        let nanos = (self.u32()?, self.u32()?);
        let (mtime, ctime) = ((seconds.0, nanos.0), (seconds.1, nanos.1));
        let wrong = |time: &FileTime| time.1 >= NANOS;
        match [mtime, ctime].into_iter().find(wrong) {
            Some(time) => Err(ScbError::field("time of the image", time.1)),
            None => Ok(FileFacts {
                device,
                inode,
                mtime,
                ctime,
                blocks,
            }),
        }
    }

    fn i64(&mut self) -> Result<i64, ScbError> {
        self.take().map(i64::from_le_bytes)
    }
}
