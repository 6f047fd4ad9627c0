//! Files that are no patches: every one is refused, none makes the reader panic.

mod common;

use common::{Random, random, small};
use hp_pack::{ReadError, read, seal, write};

#[test]
fn every_flipped_bit_is_noticed() {
    let file = write(&small()).unwrap();
    for bit in 0..file.len() * 8 {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(read(&damaged).is_err(), "bit {} of byte {:#x}", bit % 8, bit / 8);
    }
}

#[test]
fn every_truncation_is_noticed() {
    let file = write(&small()).unwrap();
    for len in 0..file.len() {
        assert!(read(&file[..len]).is_err(), "cut off at {len}");
        let mut cut = file[..len].to_vec();
        seal(&mut cut);
        assert!(read(&cut).is_err(), "cut off at {len}, digest made right");
    }
}

#[test]
fn trailing_bytes_are_noticed() {
    let mut file = write(&small()).unwrap();
    file.push(0);
    seal(&mut file);
    assert!(matches!(read(&file), Err(ReadError::Malformed { section: "file header", .. })));
}

/// With the digest made right, a changed file is refused or is another valid patch, which reads back as itself:
/// no byte is ignored.
#[test]
fn no_byte_is_ignored() {
    let file = write(&small()).unwrap();
    for bit in 0..file.len() * 8 {
        let mut other = file.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        seal(&mut other);
        if other == file {
            continue; // the bit was in the digest
        }
        // A newer minor version is read as far as it is known, so it is not written back.
        let newer = other[234..236] != file[234..236];
        if let Ok(patch) = read(&other)
            && !newer
        {
            assert_eq!(write(&patch).unwrap(), other, "bit {} of byte {:#x}", bit % 8, bit / 8);
        }
    }
}

#[test]
fn random_edits_never_panic() {
    for seed in 0..40 {
        let mut patch = random(seed);
        patch.canonicalize();
        let file = write(&patch).unwrap();
        let mut r = Random(seed);
        for _ in 0..500 {
            let mut other = file.clone();
            for _ in 0..=r.below(3) {
                edit(&mut other, &mut r);
            }
            seal(&mut other);
            let _ = read(&other);
        }
    }
}

/// Overwrites, cuts or repeats a piece, with values that are likely to hurt.
fn edit(file: &mut Vec<u8>, r: &mut Random) {
    let at = r.below(file.len() as u64) as usize;
    let values = [0, 1, u64::MAX, u64::MAX - 7, 1 << 63, 1 << 31, file.len() as u64, r.next()];
    let value = values[r.below(values.len() as u64) as usize].to_le_bytes();
    match r.below(8) {
        0 => file.truncate(at.max(200)),
        1 => {
            let piece = file[at..].to_vec();
            file.extend(piece);
        }
        2 => file[at] = value[0],
        _ => {
            let at = at & !3;
            let end = (at + [4, 8][r.below(2) as usize]).min(file.len());
            file[at..end].copy_from_slice(&value[..end - at]);
        }
    }
}

#[test]
fn errors_say_what_and_where() {
    let text = |file: &[u8]| read(file).unwrap_err().to_string();
    let file = write(&small()).unwrap();
    let sealed = |at: usize, value: u8| {
        let mut other = file.clone();
        other[at] = value;
        seal(&mut other);
        text(&other)
    };
    assert_eq!(text(b""), "not a patch: the file is not an ELF file");
    assert_eq!(text(b"#!/bin/sh\n"), "not a patch: the file is not an ELF file");
    assert_eq!(text(&std::fs::read("/bin/true").unwrap()), "not a patch: the ELF file has no hpatch note");
    assert!(text(&file[..file.len() - 1]).starts_with("damaged patch: "));
    assert_eq!(sealed(232, 2), "format version 2.0; this reader knows 1.x: use a newer hp");
    assert_eq!(sealed(18, 183), "malformed patch: file header, at offset 0x12: names another architecture than x86-64");
    assert_eq!(sealed(238, 2), "malformed patch: .note.hpatch, at offset 0xee: has unknown flags");
}

/// A newer minor version may add sections that are not loaded; in our own version they are refused.
#[test]
fn unknown_sections_belong_to_newer_minor_versions() {
    let file = write(&small()).unwrap();
    let renamed = |minor: u8| {
        let mut other = insert_section(&file, b".hpatch.later\0");
        other[234] = minor;
        seal(&mut other);
        read(&other)
    };
    assert_eq!(renamed(1).unwrap(), small());
    assert!(renamed(0).unwrap_err().to_string().ends_with("section is unknown"));
}

/// Adds an empty section without flags before `.symtab`.
fn insert_section(file: &[u8], name: &[u8]) -> Vec<u8> {
    let u64_at = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap()) as usize;
    let u32_at = |b: &[u8], at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
    let table = u64_at(file, 40);
    let mut headers: Vec<Vec<u8>> = file[table..].chunks(64).map(<[u8]>::to_vec).collect();
    let new = headers.len() - 3;
    let symtab = u32_at(&headers[new], 0);
    let mut names_header = headers.last().unwrap().clone();
    let (names_at, names_len) = (u64_at(&names_header, 24), u64_at(&names_header, 32));
    let mut names = file[names_at..names_at + names_len].to_vec();
    names.splice(symtab as usize..symtab as usize, name.iter().copied());
    names_header[32..40].copy_from_slice(&(names.len() as u64).to_le_bytes());
    *headers.last_mut().unwrap() = names_header;

    let mut later = vec![0u8; 64];
    later[0..4].copy_from_slice(&symtab.to_le_bytes());
    later[4..8].copy_from_slice(&1u32.to_le_bytes());
    // It is empty and lies where `.hpatch.manifest` ends.
    let manifest = &headers[new - 1];
    let end = u64_at(manifest, 24) + u64_at(manifest, 32);
    later[24..32].copy_from_slice(&(end as u64).to_le_bytes());
    later[48] = 1;
    for header in &mut headers[new..] {
        let shifted = u32_at(header, 0) + name.len() as u32;
        header[0..4].copy_from_slice(&shifted.to_le_bytes());
    }
    headers.insert(new, later);
    for header in &mut headers {
        let (kind, link) = (u32_at(header, 4), u32_at(header, 40));
        if link as usize >= new && matches!(kind, 2 | 4) {
            header[40..44].copy_from_slice(&(link + 1).to_le_bytes());
        }
    }
    let mut out = file[..names_at].to_vec();
    out.extend(names);
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    out[40..48].copy_from_slice(&table.to_le_bytes());
    out[60..62].copy_from_slice(&(headers.len() as u16).to_le_bytes());
    out[62..64].copy_from_slice(&(headers.len() as u16 - 1).to_le_bytes());
    out.extend(headers.concat());
    out
}
