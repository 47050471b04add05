//! stress-ng: its class of file system stressors, three at a time, with their verification.

use shadowset::testing::Rng;

use crate::child::{give_away, unprivileged};
use crate::party::{Desk, Load, Verdict};

/// Stressors, with what keeps them small.
const STRESSORS: [&[&str]; 22] = [
    &["hdd", "--hdd-bytes", "16m"],
    &["iomix", "--iomix-bytes", "32m"],
    &["fallocate", "--fallocate-bytes", "16m"],
    &["seek", "--seek-size", "16m"],
    &["revio", "--revio-bytes", "16m"],
    &["readahead", "--readahead-bytes", "16m"],
    &["sync-file", "--sync-file-bytes", "16m"],
    &["aiol"],
    &["fpunch"],
    &["sendfile"],
    &["rename"],
    &["dir"],
    &["dirdeep"],
    &["dentry"],
    &["link"],
    &["symlink"],
    &["touch"],
    &["utime"],
    &["chdir"],
    &["chmod"],
    &["xattr"],
    &["flock"],
];

pub(crate) struct Stress;

impl Load for Stress {
    fn name(&self) -> &'static str {
        "stress-ng"
    }

    fn bout(&self, desk: &Desk, seed: u64) -> Verdict {
        let dir = desk.empty("bout")?;
        let mut rng = Rng::new(seed);
        give_away(&dir)?;
        // With rights it would empty the page cache of the machine.
        let mut bout = unprivileged("stress-ng");
        bout.arg("--temp-path").arg(dir);
        bout.args(["--verify", "--timeout", "4s", "--seed", &seed.to_string()]);
        let first = rng.place(STRESSORS.len());
        for step in [0, 5, 14] {
            let words = STRESSORS[(first + step) % STRESSORS.len()];
            bout.arg(format!("--{}", words[0]))
                .arg("1")
                .args(&words[1..]);
        }
        desk.group.run(&mut bout).map(drop)
    }
}
