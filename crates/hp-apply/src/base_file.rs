//! What the base's file says the original bytes are: the witness against a ledger that the
//! target forged or damaged.

use crate::addr::{LiveAddr, LiveRange};
use crate::bytes::sha256;
use crate::failure::{Failure, refused};
use crate::ledger::{Ledger, Replaced, SITE};
use crate::maps::{Mapping, Maps, device};
use crate::prelude::*;
use crate::process::Process;
use crate::sys::{self, File};

/// Checks that the bytes which a revert would write are the base's own: against the file
/// where it can be had, else against the digests in the ledger.
pub(crate) fn check_originals(process: &Process, maps: &Maps, ledger: &Ledger) -> Result<(), Failure> {
    let mut files: Vec<(LiveRange, Option<File>)> = Vec::new();
    for function in &ledger.functions {
        let Some(mapping) = maps.at(function.site).filter(|mapping| mapping.range.covers(function.site_range())) else {
            return Err(refused(format_args!("the entry of {} is not mapped any more", function.name)));
        };
        if !files.iter().any(|(range, _)| *range == mapping.range) {
            files.push((mapping.range, open(process, mapping)));
        }
        let file = files.iter().find(|(range, _)| *range == mapping.range).and_then(|(_, file)| file.as_ref());
        let known = match file.and_then(|file| from_file(file, mapping, function.site)) {
            Some(bytes) => bytes == function.site_bytes,
            None => fits_digest(process, ledger, function),
        };
        if !known {
            let name = &function.name;
            return Err(refused(format_args!("the recorded original bytes of {name} are not those of the base")));
        }
    }
    Ok(())
}

/// The file of a mapping, if it is certainly the one that is mapped.
fn open(process: &Process, mapping: &Mapping) -> Option<File> {
    if !mapping.is_file() {
        return None;
    }
    let (pid, start, end) = (process.pid, mapping.range.start.0, mapping.range.end.0);
    // The first names the mapped file itself; the others may have been replaced.
    if let Ok(file) = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}")) {
        return Some(file);
    }
    let by_path = format!("/proc/{pid}/root{}", mapping.path);
    [by_path, mapping.path.clone(), format!("/proc/{pid}/exe")].iter().find_map(|path| {
        let about = sys::about(path).ok()?;
        let same = about.is_file() && about.inode == mapping.file.1 && mapped_device(about.device) == mapping.file.0;
        same.then(|| File::open(path).ok()).flatten()
    })
}

/// The device of a file as the maps have it (`linux/kdev_t.h`: `new_encode_dev`).
fn mapped_device(number: u64) -> u64 {
    device(number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00)
}

fn from_file(file: &File, mapping: &Mapping, site: LiveAddr) -> Option<[u8; SITE]> {
    let mut bytes = [0; SITE];
    let offset = mapping.offset.checked_add(site.0 - mapping.range.start.0)?;
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

/// Whether the function's body has its recorded digest when the original bytes are put back.
fn fits_digest(process: &Process, ledger: &Ledger, function: &Replaced) -> bool {
    let Some(body) = function.old.first() else { return false };
    let Ok(mut bytes) = process.mem.bytes(body.range.start, body.range.len() as usize) else { return false };
    substitute(&mut bytes, body.range, ledger);
    sha256(&bytes) == body.digest
}

/// Puts the recorded original bytes of a ledger over what memory holds of a range.
pub(crate) fn substitute(bytes: &mut [u8], range: LiveRange, ledger: &Ledger) {
    for function in ledger.functions.iter().filter(|function| function.site_range().overlaps(range)) {
        for (index, &byte) in function.site_bytes.iter().enumerate() {
            let at = function.site.plus(index as u64);
            if range.contains(at)
                && let Some(slot) = bytes.get_mut((at.0 - range.start.0) as usize)
            {
                *slot = byte;
            }
        }
    }
}
