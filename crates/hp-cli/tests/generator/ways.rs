//! The ways in which a program can be built: compiler, flags, linker, as one program or as a library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::generator::program::{Language, Program, once_in, pick};
use crate::generator::render::{MAIN, file};
use crate::harness::build::on_path;
use crate::harness::process::run;
use crate::random::Random;

/// One way.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    compiler: &'static str,
    compile: Vec<&'static str>,
    link: Vec<&'static str>,
    /// All but `main.c` is a shared library, which is what is patched.
    pub(crate) library: bool,
    pub(crate) strip: bool,
}

impl Way {
    /// Any way that the tools have.
    pub(crate) fn any(language: Language, r: &mut Random) -> Way {
        let clang = once_in(r, 2);
        let library = once_in(r, 6);
        let mut compile = vec![*pick(r, &["-O0", "-O1", "-O2", "-O2", "-O2", "-O3", "-Os"]).expect("not empty")];
        let mut link = Vec::new();
        let debug = !once_in(r, 4);
        if debug {
            compile.push("-g");
        }
        let form = if library { 9 } else { r.below(9) };
        match form {
            9 => {
                compile.push("-fPIC");
                if once_in(r, 4) {
                    link.push("-Wl,-Bsymbolic");
                }
            }
            0..=3 => {
                compile.push("-fPIE");
                link.push("-pie");
            }
            4..=6 => {
                compile.push("-fno-pie");
                link.push("-no-pie");
            }
            7 => {
                compile.push("-fno-pie");
                link.push("-static");
            }
            _ => {
                compile.push("-fPIE");
                link.push("-static-pie");
            }
        }
        let lto = once_in(r, 7) && form != 8;
        let linkers: &[&str] = match (clang, lto) {
            (true, true) => &["-fuse-ld=lld"],
            (false, true) => &["-fuse-ld=bfd", "-fuse-ld=gold"],
            _ if form == 8 => &["-fuse-ld=bfd", "-fuse-ld=lld", "-fuse-ld=mold"],
            _ => &["-fuse-ld=bfd", "-fuse-ld=bfd", "-fuse-ld=gold", "-fuse-ld=lld", "-fuse-ld=mold"],
        };
        let linker = *pick(r, linkers).expect("not empty");
        link.push(linker);
        if lto {
            compile.push("-flto");
            link.push("-flto");
            link.push(compile[0]);
        }
        if once_in(r, 5) {
            compile.extend(["-ffunction-sections", "-fdata-sections"]);
            if once_in(r, 2) {
                link.push("-Wl,--gc-sections");
            }
            if linker != "-fuse-ld=bfd" && once_in(r, 3) {
                link.push("-Wl,--icf=all");
            }
        }
        let mut maybe = |n: usize, flags: &mut Vec<&'static str>, flag: &'static str| {
            if once_in(r, n) {
                flags.push(flag);
            }
        };
        maybe(8, &mut compile, "-fno-plt");
        maybe(6, &mut compile, "-fcf-protection");
        maybe(10, &mut compile, "-fstack-protector-all");
        maybe(10, &mut compile, "-fno-omit-frame-pointer");
        maybe(12, &mut compile, "-fno-inline");
        maybe(12, &mut compile, "-march=x86-64-v3");
        maybe(20, &mut compile, "-fno-jump-tables");
        maybe(20, &mut compile, "-fno-asynchronous-unwind-tables");
        if !clang {
            maybe(12, &mut compile, "-fno-toplevel-reorder");
            maybe(20, &mut compile, "-fno-section-anchors");
        }
        maybe(5, &mut link, "-Wl,-z,now");
        maybe(8, &mut link, "-Wl,-O2");
        maybe(12, &mut link, "-Wl,--emit-relocs");
        // Not every linker keeps relocations of what it takes away.
        if link.iter().any(|flag| flag.ends_with("sections") || flag.contains("icf")) {
            link.retain(|flag| *flag != "-Wl,--emit-relocs");
        }
        let strip = once_in(r, 5);
        let compiler = match (clang, language) {
            (true, Language::C) => "clang",
            (false, Language::C) => "gcc",
            (true, Language::Cpp) => "clang++",
            (false, Language::Cpp) => "g++",
        };
        if language == Language::Cpp {
            compile.push("-std=gnu++17");
            for (n, flag) in [(6, "-fvisibility-inlines-hidden"), (12, "-fno-threadsafe-statics")] {
                if once_in(r, n) {
                    compile.push(flag);
                }
            }
        }
        Way { compiler, compile, link, library, strip }
    }

    /// The C library is in it.
    pub(crate) fn is_static(&self) -> bool {
        self.link.iter().any(|flag| flag.starts_with("-static"))
    }

    /// The tool that this machine lacks for it, if any.
    pub(crate) fn missing(&self) -> Option<String> {
        let linker = self.link.iter().find_map(|flag| flag.strip_prefix("-fuse-ld=")).map(|name| format!("ld.{name}"));
        [Some(self.compiler.to_owned()), linker].into_iter().flatten().find(|tool| !on_path(tool))
    }

    /// As a command line has it.
    pub(crate) fn line(&self) -> String {
        let mut words = vec![self.compiler];
        words.extend(&self.compile);
        words.extend(&self.link);
        words.extend(self.library.then_some("-shared"));
        words.extend(self.strip.then_some("# stripped"));
        words.join(" ")
    }

    /// What distinguishes it for a summary.
    pub(crate) fn kind(&self) -> String {
        let has = |flag: &str| self.compile.contains(&flag) || self.link.contains(&flag);
        let form = ["-no-pie", "-static", "-static-pie", "-pie"].into_iter().find(|f| has(f)).unwrap_or("-shared");
        let debug = if self.strip {
            "stripped"
        } else if has("-g") {
            "-g"
        } else {
            "symbols"
        };
        format!("{} {form} {debug}", self.compiler)
    }

    /// Builds the program, its sources in `root`/src, what comes of it in `root`/`version`. An object file of `earlier` is taken as
    /// it is if its source is the same. Gives the program and the file that a patch is for.
    pub(crate) fn build(
        &self,
        program: &Program,
        root: &Path,
        version: &str,
        earlier: Option<&str>,
    ) -> Result<[PathBuf; 2], String> {
        let (sources, folder) = (root.join("src"), root.join(version));
        let fail = |e: std::io::Error| format!("{}: {e}", folder.display());
        fs::create_dir_all(&sources).map_err(fail)?;
        fs::create_dir_all(&folder).map_err(fail)?;
        let mut texts = vec![("main".to_owned(), MAIN.to_owned())];
        texts.extend((0..program.files.len()).map(|i| (format!("part{i}"), file(program, i))));
        let mut objects = Vec::new();
        for (name, text) in &texts {
            let source = format!("{name}.{}", program.language.extension());
            fs::write(folder.join(&source), text).map_err(fail)?;
            fs::write(sources.join(&source), text).map_err(fail)?;
            let object = folder.join(format!("{name}.o"));
            objects.push(object.clone());
            let same = |earlier: &&str| fs::read_to_string(root.join(earlier).join(&source)).is_ok_and(|t| t == *text);
            if let Some(earlier) = earlier.filter(same) {
                fs::copy(root.join(earlier).join(format!("{name}.o")), &object).map_err(fail)?;
                continue;
            }
            self.compiled(&sources, &["-c"], &source, &object)?;
        }
        let (exe, library) = (folder.join("program"), folder.join("libparts.so"));
        let mut command = Command::new(self.compiler);
        if self.library {
            let mut library_command = Command::new(self.compiler);
            library_command.arg("-shared").args(&self.link).args(["-Wl,--build-id", "-Wl,-soname,libparts.so"]);
            run(library_command.args(&objects[1..]).arg("-o").arg(&library))?.expect(0, "linking the library")?;
            command.arg("-pie").arg(&objects[0]).arg("-L").arg(&folder).args(["-lparts", "-Wl,-rpath,$ORIGIN"]);
            if self.compile.contains(&"-flto") {
                command
                    .args(["-flto", if self.compiler.starts_with("clang") { "-fuse-ld=lld" } else { "-fuse-ld=bfd" }]);
            }
        } else {
            command.args(&self.link).args(&objects);
        }
        run(command.arg("-Wl,--build-id").arg("-o").arg(&exe))?.expect(0, "linking")?;
        let image = if self.library { library } else { exe.clone() };
        if self.strip {
            run(Command::new("strip").arg(&image))?.expect(0, "strip")?;
        }
        Ok([exe, image])
    }

    fn compiled(&self, sources: &Path, how: &[&str], source: &str, out: &Path) -> Result<(), String> {
        let mut command = Command::new(self.compiler);
        command.current_dir(sources).args(&self.compile).args(how).args(["-w", source, "-o"]).arg(out);
        run(&mut command)?.expect(0, "compiling")?;
        Ok(())
    }

    /// What the compiler makes of each of the program's own files, as text of assembly; none where that is not yet the code.
    pub(crate) fn assembly(&self, program: &Program, root: &Path) -> Result<Option<Vec<String>>, String> {
        if self.compile.contains(&"-flto") {
            return Ok(None);
        }
        fs::create_dir_all(root).map_err(|e| format!("{}: {e}", root.display()))?;
        let text = |i: usize| {
            let source = format!("part{i}.{}", program.language.extension());
            let out = root.join("out.s");
            fs::write(root.join(&source), file(program, i)).map_err(|e| e.to_string())?;
            self.compiled(root, &["-S", "-g0"], &source, &out)?;
            fs::read_to_string(out).map_err(|e| e.to_string())
        };
        (0..program.files.len()).map(text).collect::<Result<_, _>>().map(Some)
    }
}
