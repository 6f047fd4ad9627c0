//! The `.hpatch` format: what a patch is, how it is written and how it is read.
//!
//! A patch is an ELF64 relocatable object that standard tools can read. [`Patch`] is
//! its model in memory: new code and data in [`Section`]s, [`Symbol`]s that lead into
//! the payload, into the base image or to imports, [`Relocation`]s, and one
//! [`FunctionRecord`] for each range of old code that the patch replaces.
//!
//! This crate does no I/O and is *not* for judging whether a patch is safe (that is
//! `hp-diff`'s work) or for loading one (that is `hp-apply`'s). The reader is strict:
//! every offset, count and string is checked before use, and it never panics.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let secret = hp_pack::SecretKey::generate(&[7; 40]);
//! # let patch_file: &[u8] = b"not a patch";
//! // A host that trusts a key checks the signature before it reads anything else.
//! let key = hp_pack::PublicKey::parse(&secret.public().to_text())?;
//! if let Err(why) = hp_pack::verify(patch_file, &[key]) {
//!     println!("refused: {why}");
//! } else {
//!     println!("{} functions are replaced", hp_pack::read(patch_file)?.functions.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `docs/FORMAT.md` in the repository describes the bytes.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod base64;
#[cfg(feature = "write")]
mod canonical;
mod elf;
mod error;
mod key;
#[cfg(feature = "manifest")]
pub mod manifest;
mod model;
mod parts;
mod read;
mod seal;
#[cfg(feature = "sign")]
mod secret;
mod signature;
mod validate;
#[cfg(feature = "write")]
mod write;

pub use error::{Invalid, Item, ReadError};
pub use key::{KeyError, KeyId, PublicKey};
pub use model::*;
pub use read::read;
pub use seal::{id, seal};
#[cfg(feature = "sign")]
pub use secret::SecretKey;
pub use signature::{Detached, SignatureError, signed_by, verify};
#[cfg(feature = "write")]
pub use write::{WriteError, write};
