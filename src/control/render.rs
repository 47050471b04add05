//! From a node and an object to bytes.

use super::logbook::Logbook;
use super::table::{Drawn, Node, Show};
use super::text;
use crate::server::params::Param;
use crate::server::{EventRecord, Published};
use crate::set::{BitmapId, MemberId, OpId};

/// Which object a node belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Set,
    Member(MemberId),
    Bitmap(BitmapId),
    Operation(OpId),
    Param(Param),
}

/// What a node's text is made of.
pub(super) struct Context<'a> {
    /// The state that was published last.
    pub(super) now: &'a Published,
    /// The last events, taken when they are wanted.
    pub(super) events: &'a dyn Fn() -> Vec<EventRecord>,
    /// What has been refused.
    pub(super) logbook: &'a Logbook,
}

impl Context<'_> {
    /// The name of a member.
    pub(super) fn member_name(&self, id: MemberId) -> String {
        text::line(self.now.set.name(id))
    }
}

/// The contents of a node; `None` when its object is gone.
pub(super) fn render(node: &Node, key: Key, context: &Context<'_>) -> Option<Vec<u8>> {
    let set = &context.now.set;
    let text = match (node.show?, key) {
        (Show::Set(show), _) => show(context),
        (Show::Member(show), Key::Member(id)) => show(context, set.members.get(id.index())?),
        (Show::Link(to), Key::Member(id)) => {
            return to(set.members.get(id.index())?).map(String::into_bytes);
        }
        (Show::Operation(show), Key::Operation(id)) => show(context, set.operation(id)?),
        (Show::Bitmap(show), Key::Bitmap(id)) => {
            let status = set.bitmap(id)?;
            let tag = status.tag?;
            show(context, &Drawn { status, tag })
        }
        (Show::Param, Key::Param(param)) => param.spec().write(context.now.params.get(param)),
        (Show::Map, Key::Bitmap(id)) => {
            return Some(set.bitmap(id)?.map.to_bits().into_vec());
        }
        _ => return None,
    };
    Some(terminated(text).into_bytes())
}

/// A text that is not empty ends with a newline.
fn terminated(mut text: String) -> String {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
