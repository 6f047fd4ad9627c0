//! Where things are kept that are made once: outside the repository.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The cache folder.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$HP_CACHE`, else `$XDG_CACHE_HOME/hp`, else `~/.cache/hp`, made if need be.
    pub(crate) fn open() -> Result<Cache> {
        let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty()).map(PathBuf::from);
        let root = set("HP_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("hp")))
            .or_else(|| set("HOME").map(|dir| dir.join(".cache/hp")))
            .context("no place for the cache: set HP_CACHE")?;
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Cache { root: root.canonicalize()? })
    }

    /// A folder for `purpose`, made if need be.
    pub(crate) fn folder(&self, purpose: &str) -> Result<PathBuf> {
        let path = self.root.join(purpose);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Where `CASE/{old,new}/PROGRAM` and `tools/PROGRAM` are.
    pub(crate) fn pairs(&self) -> PathBuf {
        self.root.join("pairs")
    }

    /// Waits until no other run of this program works in the cache; the lock ends with the value.
    pub(crate) fn lock(&self) -> Result<File> {
        let path: &Path = &self.root.join("lock");
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }
}
