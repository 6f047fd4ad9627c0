//! The patches in the watched folder: every `*.hpatch` that can be read and that this host trusts.

use crate::args::TrustArgs;
use crate::patch_file::PatchFile;
use crate::text::clean;
use crate::trust;
use anyhow::bail;
use hp_pack::{Patch, Role};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The patches that are to be kept applied.
#[derive(Default)]
pub(crate) struct Folder {
    /// Older ones (by their counter) first.
    pub(crate) patches: Vec<PatchFile>,
    /// What was said of each file last.
    said: BTreeMap<PathBuf, String>,
}

/// News of one file.
pub(crate) struct News {
    pub(crate) file: String,
    pub(crate) event: &'static str,
    pub(crate) id: Option<String>,
    pub(crate) message: Option<String>,
}

impl Folder {
    /// Reads the folder again, and says what has changed.
    pub(crate) fn read(&mut self, folder: &Path, trust: &TrustArgs) -> std::io::Result<Vec<News>> {
        let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
        let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "hpatch"));
        paths.sort();
        let mut news = Vec::new();
        self.patches.clear();
        let gone: Vec<PathBuf> = self.said.keys().filter(|path| !paths.contains(path)).cloned().collect();
        for path in gone {
            self.said.remove(&path);
            news.push(News { file: shown(&path), event: "file-gone", id: None, message: None });
        }
        for path in paths {
            // The keys are read anew: they may have changed too.
            let read =
                regular(&path).and_then(|()| trust::keys(trust)).and_then(|keys| trust::read_patch(&path, &keys));
            let (event, id, message) = match &read {
                Ok((file, _)) => ("file", Some(file.id.clone()), None),
                Err(error) => ("file-refused", None, Some(clean(&format!("{error:#}")))),
            };
            let said = format!("{event} {id:?} {message:?}");
            if self.said.insert(path.clone(), said.clone()) != Some(said) {
                news.push(News { file: shown(&path), event, id, message });
            }
            self.patches.extend(read.ok().map(|(file, _)| file));
        }
        self.leave_out_replaced();
        Ok(news)
    }

    /// Patches that another one in the folder takes the place of are not for any process.
    fn leave_out_replaced(&mut self) {
        self.patches.sort_by(|a, b| (a.patch.counter, &a.id).cmp(&(b.patch.counter, &b.id)));
        let replaced: Vec<String> = self
            .patches
            .iter()
            .filter(|old| self.patches.iter().any(|new| takes_the_place(&new.patch, &old.patch)))
            .map(|old| old.id.clone())
            .collect();
        self.patches.retain(|file| !replaced.contains(&file.id));
    }
}

/// Refuses what is there and no file: a pipe would be waited for as long as nobody writes to it.
fn regular(path: &Path) -> anyhow::Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_file() => bail!("{} is no regular file", shown(path)),
        _ => Ok(()),
    }
}

fn takes_the_place(new: &Patch, old: &Patch) -> bool {
    let entries = |patch: &Patch| -> Vec<u64> {
        let entries = patch.functions.iter().filter(|record| matches!(record.role, Role::Entry(_)));
        entries.map(|record| record.old_address).collect()
    };
    let own = entries(new);
    new.base.build_id == old.base.build_id
        && new.counter > old.counter
        && entries(old).iter().any(|address| own.binary_search(address).is_ok())
}

fn shown(path: &Path) -> String {
    clean(&path.display().to_string())
}
