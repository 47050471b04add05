//! The table: every file of `.shadow/`, its mode, its meaning, what it shows and what it takes.

use std::fmt::Write as _;

use super::command::COMMANDS;
use super::render::Context;
use super::{display, metrics, report, show, stats, status};
use crate::server::params;
use crate::set::{BitmapStatus, BitmapTag, MemberStatus, Operation, rate_text};

/// Kind of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A file.
    File,
    /// A symbolic link.
    Link,
}

/// A bitmap with what is known of it.
pub(super) struct Drawn<'a> {
    pub(super) status: &'a BitmapStatus,
    pub(super) tag: BitmapTag,
}

/// How a node's text is made; a missing newline at the end is added.
#[derive(Clone, Copy)]
pub(super) enum Show {
    Set(fn(&Context<'_>) -> String),
    Member(fn(&Context<'_>, &MemberStatus) -> String),
    Bitmap(fn(&Context<'_>, &Drawn<'_>) -> String),
    Operation(fn(&Context<'_>, &Operation) -> String),
    /// The value of a parameter.
    Param,
    /// Raw bytes, with no newline.
    Map,
    /// Target of a link, with no newline; `None` where there is no link.
    Link(fn(&MemberStatus) -> Option<String>),
}

/// What a write to a node does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Store {
    /// Any command.
    Command,
    /// One of these commands, for the object that the node belongs to.
    ObjectCommand(&'static [&'static str]),
    /// A value for the parameter, of the unit, a member or an operation, that the node is.
    Value,
    /// Clears the error log.
    ClearErrors,
}

/// When a node's contents change last, for its mtime.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Changes {
    /// Not while the unit is mounted.
    Never,
    /// With the state of its object.
    WithObject,
    /// With anything.
    WithSet,
}

/// One node of the tree.
pub struct Node {
    /// Its path below `.shadow/`; `<m>`, `<id>` and `<n>` stand for objects.
    pub path: &'static str,
    /// Its permissions.
    pub mode: u16,
    /// Whether poll(2) wakes on it.
    pub polls: bool,
    /// Its meaning, one sentence.
    pub doc: &'static str,
    /// What it is.
    pub kind: Kind,
    pub(super) show: Option<Show>,
    pub(super) store: Option<Store>,
    pub(super) changes: Changes,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:04o}", self.path, self.mode)
    }
}

impl Node {
    /// Path of its directory; `None` for `.shadow/` itself.
    #[must_use]
    pub fn parent(&self) -> Option<&'static str> {
        match self.path.rsplit_once('/') {
            Some((parent, _)) => Some(parent),
            None if self.path.is_empty() => None,
            None => Some(""),
        }
    }

    /// Its name in its directory.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.path
            .rsplit_once('/')
            .map_or(self.path, |(_, name)| name)
    }

    /// Whether it takes writes.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.store.is_some()
    }

    const fn polls(mut self) -> Self {
        self.polls = true;
        self
    }

    const fn stores(mut self, store: Store) -> Self {
        self.store = Some(store);
        self.mode = 0o600;
        self
    }

    const fn mode(mut self, mode: u16) -> Self {
        self.mode = mode;
        self
    }

    const fn fixed(mut self) -> Self {
        self.changes = Changes::Never;
        self
    }
}

const fn dir(path: &'static str, doc: &'static str) -> Node {
    Node {
        path,
        mode: 0o755,
        polls: false,
        doc,
        kind: Kind::Dir,
        show: None,
        store: None,
        changes: Changes::WithSet,
    }
}

const fn node(path: &'static str, doc: &'static str, show: Show, changes: Changes) -> Node {
    Node {
        path,
        mode: 0o444,
        polls: false,
        doc,
        kind: Kind::File,
        show: Some(show),
        store: None,
        changes,
    }
}

const fn set(path: &'static str, doc: &'static str, show: fn(&Context<'_>) -> String) -> Node {
    node(path, doc, Show::Set(show), Changes::WithSet)
}

const fn member(
    path: &'static str,
    doc: &'static str,
    show: fn(&Context<'_>, &MemberStatus) -> String,
) -> Node {
    node(path, doc, Show::Member(show), Changes::WithObject)
}

const fn bitmap(
    path: &'static str,
    doc: &'static str,
    show: fn(&Context<'_>, &Drawn<'_>) -> String,
) -> Node {
    node(path, doc, Show::Bitmap(show), Changes::WithSet)
}

const fn operation(
    path: &'static str,
    doc: &'static str,
    show: fn(&Context<'_>, &Operation) -> String,
) -> Node {
    node(path, doc, Show::Operation(show), Changes::WithObject)
}

const fn link(
    path: &'static str,
    doc: &'static str,
    to: fn(&MemberStatus) -> Option<String>,
) -> Node {
    let mut link = node(path, doc, Show::Link(to), Changes::WithObject).mode(0o777);
    link.kind = Kind::Link;
    link
}

/// Commands that the file of a member takes.
const OF_MEMBER: Store = Store::ObjectCommand(&["detach", "attach", "expel"]);
/// Commands that the file of an operation takes.
const OF_OPERATION: Store = Store::ObjectCommand(&["pause", "resume", "cancel"]);

/// Every node of `.shadow/`; the first is the directory itself.
pub static TABLE: &[Node] = &[
    dir("", "The control interface of the unit."),
    set("abi", "Version of this interface.", show::abi).fixed(),
    set("version", "Version of the program.", show::version).fixed(),
    set("name", "Name of the unit.", show::name).fixed(),
    set("uuid", "Identity of the set.", show::uuid).fixed(),
    set("label", "Label of the set.", show::label).fixed(),
    set("size", "Bytes of the unit.", show::size),
    set("volsize", "Bytes that every member must have.", show::size),
    set(
        "region_blocks",
        "Blocks of 512 bytes in a region.",
        show::region_blocks,
    )
    .fixed(),
    set(
        "generation",
        "Durable number of the membership.",
        show::generation,
    ),
    set("created", "When the set was created.", show::created).fixed(),
    set(
        "state",
        "The worst that applies: steady, copying, merging, reduced, mount-verify, failed or \
         read-only.",
        show::state,
    )
    .polls(),
    set(
        "status",
        "Everything at one instant, as `key value` lines.",
        status::flat,
    )
    .polls(),
    set(
        "status.json",
        "Everything at one instant, as JSON.",
        status::json,
    )
    .polls(),
    set("show", "Everything, for people.", display::display),
    set(
        "control",
        "Takes one command for each write; the answer is read back on the same file.",
        show::control,
    )
    .polls()
    .stores(Store::Command),
    set(
        "last_error",
        "The last command that was refused, and why.",
        show::last_error,
    ),
    set(
        "error_log",
        "The last 16 refused commands; any write clears it.",
        show::error_log,
    )
    .stores(Store::ClearErrors),
    set(
        "events",
        "The last 256 events, one JSON object on a line.",
        show::events,
    )
    .polls(),
    set(
        "metrics",
        "Counters and states in the OpenMetrics format.",
        metrics::metrics,
    ),
    set("help", "This text.", |_| help()).fixed(),
    dir("members", "The members, by name."),
    dir("members/<m>", "One member."),
    member("members/<m>/path", "Path of the image.", show::member_path),
    member("members/<m>/uuid", "Identity of the member.", |_, m| {
        m.uuid.to_string()
    }),
    member("members/<m>/size", "Bytes of the image.", |_, m| {
        m.size.to_string()
    }),
    member("members/<m>/errors", "Errors since the mount.", |_, m| {
        m.errors.to_string()
    }),
    member(
        "members/<m>/fingerprint",
        "Size and hash of places of the image when the member left.",
        show::member_fingerprint,
    ),
    member(
        "members/<m>/reason",
        "Why the member is in its state.",
        show::member_reason,
    ),
    member(
        "members/<m>/since",
        "Since when it is in its state.",
        show::member_since,
    ),
    member(
        "members/<m>/state",
        "source, copy-target, merging, detached, expelled or missing; \
         takes detach, attach and expel without the name.",
        |_, m| m.state.to_owned(),
    )
    .polls()
    .stores(OF_MEMBER),
    member(
        "members/<m>/plan",
        "What an attach would do now.",
        show::member_plan,
    ),
    member(
        "members/<m>/read_cost",
        "Cost of a read; lower is preferred.",
        |_, m| m.read_cost.to_string(),
    )
    .stores(Store::Value),
    member("members/<m>/site", "Site of the member.", |_, m| {
        m.site.to_string()
    })
    .stores(Store::Value),
    member(
        "members/<m>/timeout",
        "Seconds without an answer after which it is expelled; 0 for member_timeout.",
        |_, m| m.timeout.to_string(),
    )
    .stores(Store::Value),
    member(
        "members/<m>/stats",
        "What was asked of it since the mount, and how long it took.",
        stats::member,
    ),
    link(
        "members/<m>/bitmap",
        "The member's bitmap, where it has one.",
        |m| m.bitmap.map(|id| format!("../../bitmaps/{id}")),
    ),
    dir("bitmaps", "The bitmaps, by id."),
    dir("bitmaps/<id>", "One bitmap; rmdir deletes it."),
    bitmap(
        "bitmaps/<id>/member",
        "The member that it belongs to.",
        show::bitmap_member,
    ),
    bitmap("bitmaps/<id>/type", "minicopy.", |_, _| {
        "minicopy".to_owned()
    }),
    bitmap(
        "bitmaps/<id>/created",
        "When it was made.",
        show::bitmap_created,
    ),
    bitmap(
        "bitmaps/<id>/generation",
        "Generation of the set when its member left with it, the last time.",
        |_, b| b.tag.generation.to_string(),
    ),
    bitmap(
        "bitmaps/<id>/policy",
        "The policy that it was made under.",
        |_, b| b.tag.policy.name().to_owned(),
    ),
    bitmap(
        "bitmaps/<id>/durability",
        "What it survives: power, crash, or with memory not the end of the mount.",
        |c, _| c.now.durability_now().name().to_owned(),
    ),
    bitmap("bitmaps/<id>/state", "active or in-use.", |_, b| {
        show::bitmap_state(b.status).to_owned()
    }),
    bitmap(
        "bitmaps/<id>/bits",
        "Regions that it covers.",
        show::bitmap_bits,
    ),
    bitmap(
        "bitmaps/<id>/set_bits",
        "Regions that differ, or may.",
        |_, b| b.status.map.count().to_string(),
    ),
    bitmap(
        "bitmaps/<id>/set_bytes",
        "Bytes of those regions.",
        |_, b| b.status.map.stale_bytes().to_string(),
    ),
    bitmap(
        "bitmaps/<id>/percent",
        "Share of the bits that are set.",
        show::bitmap_percent,
    ),
    bitmap(
        "bitmaps/<id>/covered_bytes",
        "Bytes of the unit that it covers.",
        show::bitmap_covered,
    ),
    bitmap(
        "bitmaps/<id>/uncovered_bytes",
        "Bytes of the unit behind its end; all of them count \
         as different.",
        |c, b| show::uncovered(c.now, b.status).to_string(),
    ),
    bitmap(
        "bitmaps/<id>/granularity_blocks",
        "Blocks of 512 bytes for one bit.",
        |_, b| b.status.map.geometry().region_blocks().to_string(),
    ),
    bitmap(
        "bitmaps/<id>/memory_bytes",
        "Bytes of memory that it takes.",
        |_, b| b.status.map.memory_bytes().to_string(),
    ),
    bitmap(
        "bitmaps/<id>/ranges",
        "First block and number of blocks of each run of set bits.",
        show::bitmap_ranges,
    ),
    bitmap(
        "bitmaps/<id>/extents.json",
        "The runs of set bits in bytes, as JSON.",
        show::bitmap_extents,
    ),
    node(
        "bitmaps/<id>/map",
        "The bits: bit i of byte j is region 8j+i.",
        Show::Map,
        Changes::WithSet,
    )
    .mode(0o400),
    dir(
        "operations",
        "Running operations and the last 16 finished, by number.",
    ),
    dir(
        "operations/<n>",
        "One operation; rmdir forgets a finished one.",
    ),
    operation(
        "operations/<n>/kind",
        "full-copy, compare-copy, minicopy, merge, minimerge or verify.",
        |_, o| o.kind().to_owned(),
    ),
    operation(
        "operations/<n>/source",
        "The master member when it was admitted; of a verify the member whose bytes it takes for right.",
        show::operation_source,
    ),
    operation(
        "operations/<n>/target",
        "The member that it fills.",
        show::operation_target,
    ),
    operation(
        "operations/<n>/started",
        "When it first ran.",
        show::operation_started,
    ),
    operation(
        "operations/<n>/finished",
        "When it ended.",
        show::operation_finished,
    ),
    operation(
        "operations/<n>/state",
        "running, paused, queued, done, failed or cancelled; takes \
         pause, resume and cancel without the number.",
        |_, o| o.state.name().to_owned(),
    )
    .polls()
    .stores(OF_OPERATION),
    operation(
        "operations/<n>/progress",
        "How far it is, as `key value` lines.",
        show::operation_progress,
    )
    .polls(),
    operation(
        "operations/<n>/rate_max",
        "The most that it reads: bytes per second with k, M or G, or max.",
        |_, o| rate_text(o.progress.rate_max()),
    )
    .stores(Store::Value),
    operation(
        "operations/<n>/report",
        "Of a verify: the blocks in which the members differ.",
        report::report,
    ),
    dir(
        "stats",
        "Counters since the mount; they only grow, until reset-counters.",
    ),
    set(
        "stats/io",
        "What applications asked of the unit: requests, bytes, microseconds, errors.",
        stats::io,
    ),
    set(
        "stats/latency",
        "How many of these requests took how long.",
        stats::latency,
    ),
    set(
        "stats/copy",
        "What has come of operations of each kind, and the bytes that they moved.",
        stats::copy,
    ),
    set(
        "stats/bitmap",
        "Announcements of first writes to regions, and how they were committed.",
        show::announcements,
    ),
    dir("params", "The parameters, by name."),
    set(
        "params/HELP",
        "Name, type, smallest and largest value, default, unit and meaning of each parameter.",
        |_| params::help(),
    )
    .fixed(),
    node(
        "params/<p>",
        "One parameter; takes another value.",
        Show::Param,
        Changes::WithSet,
    )
    .stores(Store::Value),
];

/// The tree and the commands, from the tables that serve them.
#[must_use]
pub fn help() -> String {
    let mut out = String::from("# The tree: path, mode (p: poll wakes on it), meaning\n");
    for node in TABLE {
        let path = match (node.kind, node.path) {
            (_, "") => ".shadow/".to_owned(),
            (Kind::Dir, path) => format!("{path}/"),
            (_, path) => path.to_owned(),
        };
        let polls = if node.polls { "p" } else { " " };
        let _ = writeln!(out, "{path:<34}  {:04o} {polls}  {}", node.mode, node.doc);
    }
    out.push_str("# The commands, one for each write to `control`\n");
    for spec in COMMANDS {
        let _ = writeln!(out, "{}  {}", spec.syntax, spec.doc);
    }
    out.push_str(
        "# A value that is absent is `-`, in JSON null. Sizes are bytes, times RFC 3339 UTC.\n\
         # A word with blanks goes in double quotes; \\\" and \\\\ stand for themselves there.\n\
         # inotify does not see changes here; poll, epoll and select do.\n",
    );
    out
}

#[cfg(test)]
mod tests;
