//! A build, ready to be compared: its image, its entities and its decoded code.

mod fragments;

use rayon::prelude::*;

use crate::ahead;
use crate::arch::{self, Code, JumpTable};
use crate::before;
use crate::entity::{CodeRange, FunctionId, Map};
use crate::followed::Followed;
use crate::image::Image;
use crate::leftovers::{Contents, Leftovers};
use crate::lsda;
use crate::plain_names;
use crate::templates;

/// The decoded code of one function.
#[derive(Debug, Default)]
pub(crate) struct FunctionCode {
    /// One for each range.
    pub ranges: Vec<Code>,
    pub tables: Vec<JumpTable>,
    /// A computed jump whose table was not found.
    pub unresolved_jump: Option<u64>,
}

/// One of the two inputs.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    pub image: Image<'a>,
    pub map: Map<'a>,
    pub code: Vec<FunctionCode>,
    /// Exception tables by the start of the code that they are for.
    pub landing: lsda::Tables,
    pub leftovers: Leftovers,
    pub contents: Contents,
    pub followed: Followed,
    /// Addresses of all jump tables, ordered.
    tables: Vec<u64>,
}

impl<'a> Build<'a> {
    /// Decodes every function of `image`. In position-dependent code, `absolute` is the
    /// range of numbers that may be addresses.
    pub(crate) fn new(image: Image<'a>, absolute: Option<std::ops::Range<u64>>) -> Build<'a> {
        let mut map = Map::new(&image);
        plain_names::mark(&mut map.functions, &image.debug);
        let decoded: Vec<Vec<Code>> = map
            .functions
            .par_iter()
            .map_init(arch::DecodeRoom::default, |room, f| {
                f.ranges.iter().map(|r| decoded(&image, r, absolute.as_ref(), room)).collect()
            })
            .collect();
        let decoded = fragments::attach(&mut map, &image, decoded);
        let leaving = decoded.par_iter().flat_map_iter(|ranges| ranges.iter().flat_map(|c| c.sites.leaving()));
        let calculated =
            decoded.par_iter().zip(&map.functions).flat_map_iter(|(ranges, f)| before::starts(&image, f, ranges));
        let calculated: Vec<u64> = calculated.collect();
        map.set_references(&image, leaving.map(|s| s.target).chain(calculated));
        let found: Vec<(FunctionCode, Vec<u64>)> = decoded
            .into_par_iter()
            .zip(&map.functions)
            .map(|(ranges, function)| {
                if !ranges.iter().any(|c| c.computed_jumps || c.distances) {
                    return (FunctionCode { ranges, ..FunctionCode::default() }, Vec::new());
                }
                let spans: Vec<(u64, &[u8])> = function.ranges.iter().map(|r| (r.address, r.bytes)).collect();
                let context = arch::JumpTableContext {
                    ranges: &spans,
                    bytes_from: &|a| if image.is_constant(a) { image.bytes_from(a) } else { &[] },
                };
                let tables = arch::tables(&ranges.iter().collect::<Vec<_>>(), &context);
                let unresolved_jump = tables.unresolved_jump;
                (FunctionCode { ranges, tables: tables.jumps, unresolved_jump }, tables.distances)
            })
            .collect();
        let starts = found.iter().enumerate().flat_map(|(f, (_, starts))| starts.iter().map(move |at| (*at, f)));
        let starts: Vec<(u64, FunctionId)> = starts.collect();
        let code: Vec<FunctionCode> = found.into_iter().map(|(code, _)| code).collect();
        map.add_distances(&image, &starts);
        templates::find(&mut map, &image, &code);
        let landing = lsda::tables(&image);
        let mut tables: Vec<u64> = code.iter().flat_map(|c| &c.tables).map(|t| t.address).collect();
        tables.sort_unstable();
        let (leftovers, contents, followed) = (Leftovers::default(), Contents::default(), Followed::default());
        let mut build = Build { image, map, code, landing, leftovers, contents, followed, tables };
        let starts = ahead::starts(&build);
        build.map.add_references(starts);
        build
    }

    /// True if a jump table of some function lies at `address`.
    pub(crate) fn is_table(&self, address: u64) -> bool {
        self.tables.binary_search(&address).is_ok()
    }

    /// The table at `address` that `function` reads.
    pub(crate) fn table(&self, function: FunctionId, address: u64) -> Option<&JumpTable> {
        self.code.get(function)?.tables.iter().find(|t| t.address == address)
    }
}

/// Decodes one range; where relocations say which absolute fields are addresses, they do.
fn decoded(
    image: &Image<'_>,
    range: &CodeRange<'_>,
    absolute: Option<&std::ops::Range<u64>>,
    room: &mut arch::DecodeRoom,
) -> Code {
    let Some(fields) = image.fields else { return arch::decode(range.address, range.bytes, absolute, room) };
    let mut code = arch::decode(range.address, range.bytes, None, room);
    let inside = fields.range(range.address..range.end());
    let fields: Vec<_> = inside.map(|(at, field)| ((at - range.address) as u32, *field)).collect();
    arch::add_known(&mut code, range.address, range.bytes, &fields);
    code
}
