//! Resolving a patch's imports as the target itself would: the modules in the dynamic
//! linker's order, first definition wins, so preloaded and interposing libraries count.
//!
//! An ifunc's implementation is what the target has already chosen: the resolved slot of
//! another reference to the same function. Its resolver is never run from outside: an ifunc
//! that nobody has bound yet gets a chooser if it is only called, and is a refusal if its
//! address is taken.
//!
//! Limits: modules come in the order of the link map, which puts libraries that were
//! opened later, with a local scope too, behind all others.

use crate::addr::{Bias, LinkAddr, LiveAddr};
use crate::bytes::{u32_at, u64_at};
use crate::dynamic::{Definition, Module, Name, STT_FUNC, STT_GNU_IFUNC, STT_TLS};
use crate::failure::{Failure, refused};
use crate::finders;
use crate::image::Image;
use crate::maps::Maps;
use crate::prelude::*;
use crate::process::Process;
use crate::relocate::{Imports, goes_through_slot};
use crate::session::Session;
use crate::small::Set;
use crate::sys::{self, Mem, Seen};
use hp_pack::{Patch, Place, RelocationKind};

const AT_PHDR: u64 = 3;
const AT_PHNUM: u64 = 5;
const PT_DYNAMIC: u32 = 2;
const PT_PHDR: u32 = 6;
const MAX_MODULES: usize = 10_000;
const R_X86_64_64: u32 = 1;
const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_JUMP_SLOT: u32 = 7;
const R_X86_64_IRELATIVE: u32 = 37;

/// The target's modules in search order.
pub(crate) struct Scope<'a> {
    mem: &'a Mem,
    maps: &'a Maps,
    images: &'a [Image],
    modules: Vec<Module>,
}

/// What a name leads to.
enum Found {
    Address(LiveAddr),
    /// An indirect function that the process has not bound: the resolver.
    Resolver(LiveAddr),
}

impl Found {
    fn address(self) -> Option<LiveAddr> {
        match self {
            Found::Address(address) => Some(address),
            Found::Resolver(_) => None,
        }
    }
}

/// Resolves every import of the patch.
pub(crate) fn resolve(session: &Session, patch: &Patch) -> Result<Imports, Failure> {
    let Session { process, maps, images, ledgers, .. } = session;
    let mut imports = Imports::default();
    let wanted = wanted(patch);
    if wanted.is_empty() {
        return Ok(imports);
    }
    let scope = Scope::read(process, maps, images);
    let mut missing = Vec::new();
    for (index, as_address) in wanted {
        let Some(symbol) = patch.symbols.get(index as usize) else { continue };
        let found = match scope.find(Name::parse(&symbol.name), as_address) {
            Ok(found) => found,
            Err(why) => {
                missing.push(format!("{}: {why}", symbol.name));
                continue;
            }
        };
        let found = match found {
            Some(Found::Resolver(resolver)) => {
                imports.resolvers.insert(index, resolver);
                continue;
            }
            Some(Found::Address(address)) => Some(address),
            None => None,
        };
        if found.is_none() && !symbol.weak {
            missing.push(format!("{}: no module of the process defines it", symbol.name));
        }
        let table = if as_address { &mut imports.addresses } else { &mut imports.calls };
        // Another patch may have led a symbol to its finders, and may go before this one.
        table.insert(index, found.map_or(LiveAddr(0), |found| finders::behind(process, ledgers, found)));
    }
    if missing.is_empty() { Ok(imports) } else { Err(refused(format_args!("imports: {}", missing.join("; ")))) }
}

/// The imports that are referred to, and whether by more than calls.
fn wanted(patch: &Patch) -> Vec<(u32, bool)> {
    let (mut all, mut taken) = (Set::new(), Set::new());
    for relocation in &patch.relocations {
        let is_import = patch.symbols.get(relocation.symbol as usize).is_some_and(|s| s.place == Place::Import);
        if is_import {
            all.insert(relocation.symbol);
        }
        let called = relocation.kind == RelocationKind::Plt32 || goes_through_slot(patch, relocation);
        if is_import && !called {
            taken.insert(relocation.symbol);
        }
    }
    all.iter().map(|&symbol| (symbol, taken.contains(symbol))).collect()
}

/// Where a name leads that is not a variable of threads nor an indirect function.
pub(crate) fn definition(session: &Session, name: Name<'_>) -> Option<LiveAddr> {
    Scope::read(&session.process, &session.maps, &session.images).find(name, false).ok().flatten()?.address()
}

/// The first definition of a function's name.
pub(crate) fn symbol(session: &Session, name: Name<'_>) -> Option<Definition> {
    let scope = Scope::read(&session.process, &session.maps, &session.images);
    let found = scope.modules.iter().find_map(|module| module.find(scope.mem, name, false))?;
    (found.kind == STT_FUNC).then_some(found)
}

/// The dynamic linker's list of modules, and all that was read to find it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Linked {
    /// Address and first four words of each entry (`struct link_map`).
    list: Vec<(LiveAddr, [u8; 32])>,
    seen: Seen,
}

impl Linked {
    /// Walks the list, found through the program headers that the kernel told the program of. It is empty for a static
    /// program, and for one whose dynamic linker has not made it yet.
    pub(crate) fn read(process: &Process) -> Linked {
        let mut linked = Linked::default();
        if linked.walk(process).is_none() {
            linked.list.clear();
        }
        linked
    }

    fn walk(&mut self, process: &Process) -> Option<()> {
        let mem = &process.mem;
        let (bias, dynamic) = program_dynamic(process)?;
        let program = Module::read(mem, bias, dynamic)?;
        self.seen.add(program.debug_at, &program.debug.0.to_le_bytes());
        // struct r_debug: version, then the first struct link_map: l_addr, l_name, l_ld, l_next.
        let first = program.debug.plus(8);
        let mut link = mem.u64(first).ok()?;
        self.seen.add(first, &link.to_le_bytes());
        let mut known = Set::new();
        while link != 0 && self.list.len() < MAX_MODULES && known.insert(link) {
            let map: [u8; 32] = mem.array(LiveAddr(link)).ok()?;
            self.seen.add(LiveAddr(link), &map);
            self.list.push((LiveAddr(link), map));
            link = u64_at(&map, 24)?;
        }
        Some(())
    }

    /// Whether the list is the same now, in a process that stands. Where the program's headers are, and its dynamic
    /// section, does not change.
    pub(crate) fn is_the_same(&self, process: &Process) -> bool {
        if self.list.is_empty() { Linked::read(process).list.is_empty() } else { self.seen.holds(&process.mem) }
    }

    /// The `struct link_map` of an image; zero if it has none.
    pub(crate) fn link_map(&self, image: &Image) -> LiveAddr {
        let is = |map: &[u8; 32]| u64_at(map, 16) == image.dynamic.map(|at| at.start.0);
        self.list.iter().find(|(_, map)| is(map)).map_or(LiveAddr(0), |(at, _)| *at)
    }

    /// The modules that it names.
    fn modules(&self, mem: &Mem) -> Vec<Module> {
        let module = |map: &[u8; 32]| Module::read(mem, Bias(u64_at(map, 0)?), LiveAddr(u64_at(map, 16)?));
        self.list.iter().filter_map(|(_, map)| module(map)).collect()
    }
}

impl<'a> Scope<'a> {
    fn read(process: &'a Process, maps: &'a Maps, images: &'a [Image]) -> Scope<'a> {
        let mem = &process.mem;
        let mut modules = Linked::read(process).modules(mem);
        if modules.is_empty() {
            // A static program has no list; the kernel's own module is nothing that it was linked with.
            let own = images.iter().filter(|image| image.path != "[vdso]");
            modules = own.filter_map(|image| Module::read(mem, image.bias, image.dynamic?.start)).collect();
        }
        Scope { mem, maps, images, modules }
    }

    fn find(&self, name: Name<'_>, as_address: bool) -> Result<Option<Found>, String> {
        if self.modules.is_empty() {
            return Err("the program is static and has no symbols to resolve it with".to_owned());
        }
        for module in &self.modules {
            let Some(found) = module.find(self.mem, name, as_address) else { continue };
            return match found.kind {
                STT_TLS => Err("it is a thread-local variable".to_owned()),
                STT_GNU_IFUNC => self.implementation(module, name, &found, as_address).map(Some),
                _ => Ok(Some(Found::Address(found.address))),
            };
        }
        Ok(None)
    }

    /// What the target has bound an ifunc to; its resolver if that is nothing yet, and only calls lead there.
    fn implementation(
        &self,
        owner: &Module,
        name: Name<'_>,
        function: &Definition,
        as_address: bool,
    ) -> Result<Found, String> {
        let resolver = function.value;
        let inside = |at: LiveAddr| {
            let image = self.images.iter().find(|image| image.bias == owner.bias);
            image.is_some_and(|image| image.span.contains(at)) && self.maps.at(at).is_some_and(|map| map.execute)
        };
        // The owner's own references go by the resolver's address, those of others by name.
        let own = owner
            .each_relocation(self.mem)
            .into_iter()
            .filter(|rela| rela.kind == R_X86_64_IRELATIVE && rela.addend == resolver);
        let named = self.modules.iter().flat_map(|module| {
            module.each_relocation(self.mem).into_iter().filter(move |rela| {
                let slot = matches!(rela.kind, R_X86_64_JUMP_SLOT | R_X86_64_GLOB_DAT)
                    || rela.kind == R_X86_64_64 && rela.addend == 0;
                slot && module.symbol_is(self.mem, rela.symbol, name)
            })
        });
        let bound = own.chain(named).filter_map(|rela| self.mem.u64(rela.place).ok().map(LiveAddr));
        match bound.into_iter().find(|&value| inside(value)) {
            Some(value) => Ok(Found::Address(value)),
            None if !as_address && inside(function.address) => Ok(Found::Resolver(function.address)),
            None => Err("it is an ifunc that the process has not bound yet, and its address is taken".to_owned()),
        }
    }
}

fn program_dynamic(process: &Process) -> Option<(Bias, LiveAddr)> {
    let auxv = sys::read_piece(&format!("/proc/{}/auxv", process.pid)).ok()?;
    let get = |tag| auxv.chunks_exact(16).find(|pair| u64_at(pair, 0) == Some(tag)).and_then(|pair| u64_at(pair, 8));
    let (table, count) = (LiveAddr(get(AT_PHDR)?), get(AT_PHNUM)?.min(256));
    let headers = process.mem.bytes(table, count as usize * 56).ok()?;
    let address = |kind| {
        headers.chunks_exact(56).find(|header| u32_at(header, 0) == Some(kind)).and_then(|header| u64_at(header, 16))
    };
    // Without PT_PHDR the program is position-dependent or static.
    let bias = Bias(address(PT_PHDR).map_or(0, |own| table.0.wrapping_sub(own)));
    Some((bias, bias.live(LinkAddr(address(PT_DYNAMIC)?))))
}
