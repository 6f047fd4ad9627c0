//! The compiler's own code that starts and ends a program (`crtstuff.c`), which means the linker's symbols.

use crate::code::Use;
use crate::entities::Side;
use crate::image::Image;

/// Is this range such code? Where no symbol names its file, it is known by how it begins: it makes `__TMC_END__` twice,
/// to ask whether there is anything between the two.
pub(crate) fn is_startup(side: &Side<'_>, range: usize) -> bool {
    if !side.ranges[range].unnamed {
        return side.ranges[range].file == "crtstuff.c";
    }
    let mut steps = side.steps(range);
    let mut made = || {
        let (_, step) = steps.next()?;
        let field = step.fields.iter().next()?;
        (field.usage == Use::Address).then_some(field.target)
    };
    made().is_some_and(|first| made() == Some(first))
}

/// Is this where `__TMC_END__` lies if there are no transactional clones: at the end of `.data`, aligned for pointers?
pub(crate) fn is_end_of_data(image: &Image<'_>, at: u64) -> bool {
    image.sections.iter().any(|s| s.name == ".data" && s.end().next_multiple_of(8) == at)
}
