//! Names for people.

use crate::arch::{Site, Use};
use crate::build::Build;
use crate::entity::{FunctionId, Target};
use crate::image::Word;

/// A number of bytes from a place, as `+0x10` or `-0x10`; nothing for the place itself.
pub(crate) fn offset(bytes: i64) -> String {
    let sign = if bytes < 0 { '-' } else { '+' };
    if bytes == 0 { String::new() } else { format!("{sign}{:#x}", bytes.unsigned_abs()) }
}

/// Names where a site leads, for people.
pub(crate) fn describe(build: &Build<'_>, function: FunctionId, site: &Site) -> String {
    if build.table(function, site.target).is_some() {
        return "its jump table".into();
    }
    match build.map.resolve(&build.image, site) {
        Target::Function(id, _, 0) => build.map.functions[id].name().to_owned(),
        Target::Function(id, _, n) => format!("{}{}", build.map.functions[id].name(), offset(n as i64)),
        Target::Object(id, n) => format!("{}{}", build.map.objects[id].name(), offset(n)),
        Target::Stub(Word::Symbol(name, _)) | Target::Slot(Word::Symbol(name, _)) => name.clone(),
        Target::Stub(_) | Target::Slot(_) => "a table slot".into(),
        Target::Marker(name) => name.to_owned(),
        Target::Literal => literal_text(build, site),
        Target::Header(_) | Target::Unknown => format!("{:#x}", site.target),
    }
}

fn literal_text(build: &Build<'_>, site: &Site) -> String {
    let bytes = match site.usage {
        Use::Access(n) => build.image.bytes(site.target, u64::from(n)).unwrap_or_default(),
        _ => build.map.literal(&build.image, site.target),
    };
    match (site.usage, bytes.split_last()) {
        (Use::Address, Some((0, text))) if text.iter().all(|b| (0x20..0x7f).contains(b) || b.is_ascii_whitespace()) => {
            let text: String = String::from_utf8_lossy(text).chars().take(40).collect();
            format!("{text:?}")
        }
        _ => format!("a constant of {} bytes", bytes.len()),
    }
}
