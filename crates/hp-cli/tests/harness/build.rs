//! The two builds of a case, as an ordinary compiler makes them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::directives::Case;
use crate::harness::process::run;

/// What one build gave.
pub(crate) struct Built {
    pub(crate) programs: Vec<PathBuf>,
    pub(crate) library: PathBuf,
}

impl Case {
    /// What this machine lacks for the case, if anything.
    pub(crate) fn missing(&self) -> Option<String> {
        let compiler = self.build[0].as_str();
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has = |need: &str| match need.strip_prefix("cpu-") {
            Some(feature) => cpu.split_whitespace().any(|word| word == feature),
            None if need.starts_with('/') => Path::new(need).exists(),
            None => on_path(need),
        };
        let lacking = |need: &&str| !has(need);
        self.needs.iter().map(String::as_str).chain([compiler]).find(lacking).map(|need| format!("no {need} here"))
    }

    /// Builds the `old` or `new` version into its own folder under `root`.
    pub(crate) fn compile(&self, root: &Path, version: &str) -> Result<Built, String> {
        let folder = root.join(version);
        fs::create_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let library = folder.join("libfix.so");
        if let Some(build) = &self.library {
            let mut command = self.compiler(build, version);
            command.arg(define(build, "LIB")).arg(self.file()).arg("-Wl,-soname,libfix.so").arg("-o").arg(&library);
            // Two runs of the tests at once must not find each other's processes by build ID.
            if self.programs > 1 {
                command.arg(format!(
                    "-Wl,--build-id=0x{:08x}{}",
                    std::process::id(),
                    if version == "old" { "00" } else { "01" }
                ));
            }
            run(&mut command)?.expect(0, "building the library")?;
        }
        let programs =
            (1..=self.programs).map(|number| self.program(root, &folder, version, number)).collect::<Result<_, _>>()?;
        Ok(Built { programs, library })
    }

    fn program(&self, root: &Path, folder: &Path, version: &str, number: u32) -> Result<PathBuf, String> {
        let program = folder.join(if number == 1 { "program".into() } else { format!("program{number}") });
        let mut command = self.compiler(&self.build, version);
        command.arg(self.file());
        if number > 1 {
            command.arg(define(&self.build, &format!("PROGRAM{number}")));
        }
        for part in 2..=self.parts {
            command.arg(self.part(root, part)?);
        }
        if self.library.is_some() {
            command.arg("-L").arg(folder).args(["-lfix", "-Wl,-rpath,$ORIGIN"]);
        }
        command.arg("-o").arg(&program);
        run(&mut command)?.expect(0, &format!("building the {version} program"))?;
        Ok(program)
    }

    /// A translation unit that is the same source with `PARTn` defined, under its own file name.
    fn part(&self, root: &Path, number: u32) -> Result<PathBuf, String> {
        let extension = self.source.extension().unwrap_or_default();
        let path = root.join(format!("part{number}")).with_extension(extension);
        let text = format!("#define PART{number}\n#include \"{}\"\n", self.source.display());
        fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }

    /// The compiler, in the fixtures' own folder so that both builds see the same file names.
    fn compiler(&self, build: &[String], version: &str) -> Command {
        let mut command = Command::new(&build[0]);
        command.args(&build[1..]).arg(define(build, &version.to_uppercase()));
        if let Some(folder) = self.source.parent() {
            command.current_dir(folder);
        }
        command
    }

    fn file(&self) -> &Path {
        Path::new(self.source.file_name().unwrap_or_default())
    }
}

/// The flag that defines `name` for this compiler.
fn define(build: &[String], name: &str) -> String {
    if build[0].contains("rustc") { format!("--cfg={}", name.to_lowercase()) } else { format!("-D{name}") }
}

/// True if a program of this name is in `PATH`.
pub(crate) fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).is_file())
}
