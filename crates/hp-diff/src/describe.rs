//! Names for people.

use crate::arch::{Site, Use};
use crate::build::Build;
use crate::entity::{FunctionId, Target};
use crate::image::Word;

/// Names where a site leads, for people.
pub(crate) fn describe(build: &Build<'_>, function: FunctionId, site: &Site) -> String {
    if build.table(function, site.target).is_some() {
        return "its jump table".into();
    }
    let offset = |n: i64| if n == 0 { String::new() } else { format!("{n:+#x}") };
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
