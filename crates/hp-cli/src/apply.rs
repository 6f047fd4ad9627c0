//! `hp apply`: every patch file is read and checked before the first process is touched.

use crate::args::ApplyArgs;
use crate::exit::Exit;
use crate::patch_file::PatchFile;
use crate::targets::{Reporter, Subject, Verb, named, unseen};
use crate::text::{clean, hex};
use std::path::Path;

/// Applies each patch to each of its targets.
pub(crate) fn run(args: &ApplyArgs) -> anyhow::Result<Exit> {
    let patches = crate::trust::read_patches(&args.patches, &args.trust)?;
    let named = named(&args.targets);
    let mut reporter = Reporter::new(Verb::Apply, args.how.json);
    if let (Some(path), Some([])) = (&args.targets.exe, named.as_deref()) {
        reporter.nothing(&no_process_of(path));
        return reporter.finish();
    }
    for file in &patches {
        let pids = match &named {
            Some(pids) => pids.clone(),
            None => hp_apply::targets_of(&file.patch.base.build_id)?,
        };
        if pids.is_empty() {
            reporter.nothing(&no_process_for(file));
        }
        let subject = Subject { id: Some(file.id.clone()), name: Some(file.patch.name.clone()) };
        for pid in pids {
            reporter.add(&subject, &hp_apply::apply(pid, &file.bytes, &args.how.options()));
        }
    }
    reporter.finish()
}

/// Nothing runs this program.
pub(crate) fn no_process_of(path: &Path) -> String {
    format!("no process runs {}{}", clean(&path.display().to_string()), unseen())
}

fn no_process_for(file: &PatchFile) -> String {
    let build_id = hex(&file.patch.base.build_id);
    format!("{}: no process has build ID {build_id} loaded{}", file.display(), unseen())
}
