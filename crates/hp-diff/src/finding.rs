//! Findings: coded facts about a pair of builds. An error-level finding means no patch.
//!
//! The table below is the one place where codes are defined; `hp explain CODE` prints it
//! and `docs/FINDINGS.md` is generated from it.

use serde::Serialize;

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Worth knowing.
    Note,
    /// A patch is made; a person should look.
    Warning,
    /// No patch, unless the user accepts the code.
    Error,
}

/// One coded fact: what, where, why it matters and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Finding {
    /// The code, such as `HP0101`.
    pub code: Code,
    /// Its level, as [`Code::level`] gives it.
    pub level: Level,
    /// What it is about: a function, type, object or file. `--allow CODE=SUBJECT` matches it.
    pub subject: String,
    /// What was found, where, in one sentence.
    pub message: String,
    /// The user accepted this error.
    pub accepted: bool,
}

impl Finding {
    /// A finding of `code`'s own level, not accepted.
    pub fn new(code: Code, subject: impl Into<String>, message: impl Into<String>) -> Finding {
        Finding { code, level: code.level(), subject: subject.into(), message: message.into(), accepted: false }
    }
}

macro_rules! codes {
    ($($name:ident = $code:literal, $level:ident, $title:literal, $help:literal;)*) => {
        /// The code of a finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code { $(#[doc = $title] $name,)* }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Code] = &[$(Code::$name),*];
            /// The code as users write it.
            pub const fn as_str(self) -> &'static str { match self { $(Code::$name => $code),* } }
            /// The level that findings of this code have.
            pub const fn level(self) -> Level { match self { $(Code::$name => Level::$level),* } }
            /// A title of a few words.
            pub const fn title(self) -> &'static str { match self { $(Code::$name => $title),* } }
            /// Why it matters and what to do.
            pub const fn help(self) -> &'static str { match self { $(Code::$name => $help),* } }
        }
    };
}

codes! {
    NoSymbols = "HP0101", Error, "no symbol table",
        "One build is stripped and the other is not, or a build has neither symbols nor .eh_frame to say where its functions are. Give the builds before they are stripped, or their debug files.";
    KindDiffers = "HP0102", Error, "the builds are of different kinds",
        "One build is position-dependent, or a library, and the other is not. Compare builds made with the same flags.";
    NoBuildId = "HP0103", Error, "the old build has no build ID",
        "A process that runs the old build could not be recognised for certain. Link with -Wl,--build-id.";
    TextRelocations = "HP0104", Error, "the code is relocated at load time",
        "The code in memory differs from the file (DT_TEXTREL), so it cannot be checked before patching. Build with -fPIC.";
    CompilersDiffer = "HP0105", Warning, "the builds were made by different compilers",
        "Many functions will differ for no reason in the source. Build both with the same compiler and flags.";
    ForeignRuntime = "HP0106", Error, "the language's runtime would not survive a patch",
        "The program brings a runtime that moves or switches stacks by itself (Go, split stacks), so nothing proves that no thread is inside a function. Restart it instead.";
    NotLinked = "HP0107", Error, "the builds are object files",
        "A patch is for a linked program or shared object, which a process can have loaded and which its build ID names. The report of what changed is complete all the same; compare the linked builds for a patch.";
    FlagsDiffer = "HP0108", Warning, "the builds were made with different flags",
        "Many functions will differ for no reason in the source, and some options change how functions and data are laid out. Build both with the same flags.";
    BoundaryUnclear = "HP0201", Error, "the extent of a function is unclear",
        "Symbols overlap, so it cannot be said which bytes belong to the function. This happens in hand-written assembly.";
    Undecodable = "HP0202", Error, "the function holds bytes that are no instruction",
        "Data in code cannot be told from instructions, so its references are not known.";
    UnresolvedJump = "HP0203", Error, "a computed jump was not understood",
        "The function jumps through a table that was not recognised; the copy would jump into the old code.";
    IntoFunction = "HP0204", Error, "a reference into the middle of a function",
        "The address of a label inside a replaced function is used elsewhere; it would lead into the old code.";
    UnknownReference = "HP0205", Error, "a reference leads to something unknown",
        "The new code refers to data that no symbol and no reference of the old build identifies.";
    AmbiguousReference = "HP0206", Error, "an address has two meanings",
        "One object ends where another begins, and the old build has them apart or one of the two changed; what the function does with the address does not say which it means. Or an index is added to it, and it may lead to more than one object.";
    ImmediateAddress = "HP0207", Warning, "a number was taken for an address",
        "In position-dependent code an address looks like any number. This one is exactly the start of something; check it with `objdump -dr`.";
    ImmediateUnclear = "HP0208", Error, "a number may be an address",
        "In position-dependent code an address looks like any number, and this one could be either. Build with -fPIE, or with -Wl,--emit-relocs.";
    AliasChanged = "HP0209", Error, "names of one function were divided",
        "In one build two names are one function, in the other they are not; who holds the old address may mean either.";
    UnpairedVariable = "HP0210", Error, "a variable cannot be paired",
        "The new code uses a variable of which several could be the old one, so its value could not be kept. Build with -g.";
    UnnamedData = "HP0211", Error, "bytes without a symbol differ",
        "Code or writable data that no symbol covers differs between the builds, and what refers to it is not known.";
    LiteralEnd = "HP0212", Warning, "a text may go on behind its terminator",
        "Texts carry no length in a build. If this function reads beyond the terminator of the text, as in \"abc\\0def\", into what changed, then it changed too and the patch leaves it out; if it reads a C string, all is well.";
    PairingUnproven = "HP0213", Error, "stripped code or data could not be paired for certain",
        "Without symbols, functions and variables are paired by what they contain and by what refers to them; here that is not enough or contradicts itself. Give the debug files (--old-debug, --new-debug), or builds that are not stripped.";
    Exceptions = "HP0301", Error, "landing pads that cannot be brought along",
        "The exception table of the function, which says what it catches and cleans up, has a form that is not understood or leads to something unknown. Restart the program instead.";
    CopiedVariable = "HP0302", Error, "a library variable that the old build did not use",
        "The new build copies this variable from a library at start-up (R_X86_64_COPY); a running process has no such copy. New code reaches the library's own by a table slot, but this instruction has no form that does.";
    NewSlot = "HP0303", Error, "a table slot that the old build does not have",
        "The new code reads a slot of the global offset table whose content cannot be made in a running process.";
    ConstantReplaced = "HP0304", Warning, "a named constant was replaced by a copy",
        "New code uses the new content; pointers to the constant that were taken before keep leading to the old one. Where new code compares such pointers with the constant's address, or takes their distance, this is an error: they would never be equal again.";
    InitialValueChanged = "HP0305", Error, "the initial value or size of a variable changed",
        "The running program has its own value of the variable, made from the old initial one. If the new start value does not matter to a process that runs already, accept with --allow HP0305=NAME. Where it is a descriptor of a place in the source, such as a library for logs makes, and differs in the line only, this is a note.";
    ThreadLocalChanged = "HP0306", Error, "the thread-local storage changed",
        "Threads that run have the old layout of thread-local variables; new code would use the wrong ones.";
    ConstructorsChanged = "HP0307", Error, "start-up or exit functions changed",
        "The list of functions that run at start-up or exit differs. They have run already. If that does not matter, accept with --allow HP0307.";
    SharedConstantChanged = "HP0308", Error, "a constant that others hold changed",
        "An exported constant, vtable or type info differs: objects and other modules keep pointers to the old one.";
    NoUnwindRows = "HP0309", Warning, "no unwind rows for the function",
        "The function was built without rows in .eh_frame (-fno-asynchronous-unwind-tables, assembly). Whether a thread is inside is then judged by every word of its stack that could lead there: a stale word looks like a thread that is inside, and hp apply may end with exit 4 and name the thread. Exceptions and backtraces end at the function, as they did. Where only one of the builds has rows, this is an error: build both with the same flags.";
    ResolverChanged = "HP0310", Error, "a resolver of indirect functions changed",
        "The resolver has run already and its choice is in use.";
    WalkedSectionChanged = "HP0311", Error, "a section that the program walks changed",
        "The program goes through this section from its __start_ to its __stop_ symbol; a running process has the old list. If the old list may stay, accept with --allow HP0311=NAME.";
    VariableRenamed = "HP0312", Error, "a variable may have been renamed",
        "The new build has a writable variable that the old one lacks, and lacks one of the same size in the same place. If it is the same under another name, its value in the running process would be lost. If it is another one, accept with --allow HP0312=NAME.";
    StaticUnwinder = "HP0313", Error, "exceptions of a static program would not find their way",
        "The program is linked statically with the runtime of C++ or Rust, and the calls by which its unwinder looks for unwind rows are not known (the program is stripped, or the unwinder is of another kind): an exception or panic that passes through new code would end the program. If none passes through the replaced functions, accept with --allow HP0313.";
    LayoutChanged = "HP0401", Error, "a type's layout changed",
        "Objects of this type that live in the running process have the old layout; code with the new layout would read and write the wrong bytes. Restart the program, or change the fix so that the type keeps its layout. Where no code differs it is only a warning.";
    LayoutUnproven = "HP0402", Error, "layouts could not be compared",
        "At least one build has no debug information, so nothing shows that types kept their layout. Build with -g; if you know that no type changed, accept with --allow HP0402.";
    NumberChanged = "HP0403", Warning, "a number in lasting memory changed its meaning, or a bound was corrected",
        "The new code stores another number into memory that outlives the function, masks it with another one or compares it with another one. If that number is a flag or a state that objects of the running process hold, the new code misreads them; a corrected bound does no harm. Look at the places; --strict makes this an error, which --allow HP0403=FUNCTION accepts.";
    ReleaseAdded = "HP0404", Error, "new code releases what the old code left alone",
        "The new code hands what an object or variable leads to to a function that releases it, where the old code does not. If the fix changed who owns it, objects that the old code made may lead to it twice, and it would be released twice. If the fix only mends a leak, all is well: look at the places, and accept with --allow HP0404=FUNCTION. Where the change provably does nothing but to release more, and the old code releases from that place elsewhere, this is a note; a change of another file that stops releasing is not seen.";
    LayoutSuspected = "HP0405", Error, "offsets into objects changed, and no debug information says why",
        "The new function is the old one but for how far into objects it reaches. That is what a changed structure does to the code that uses it, and live objects have the old layout; a fix that uses another member looks the same. Build with -g, or give the debug files, to have the layouts compared; if you know that no structure changed, accept with --allow HP0405=FUNCTION.";
    TypeIdChanged = "HP0406", Error, "types of Rust got other identities",
        "Rust tells types apart at run time by core::any::TypeId, a number that changes with a crate's version, features, dependencies and compiler. What the running process keeps under the old numbers (maps by type, boxed values that are asked for their type) new code with new numbers does not find. Build the new version with the same versions and flags of the crates in question; if no such number outlives a call, accept with --allow HP0406.";
    EntryTooShort = "HP0501", Error, "the function is too short to be redirected",
        "The 5-byte jump does not fit before the next function.";
    BranchIntoEntry = "HP0502", Error, "something leads into the redirected bytes",
        "A branch or an address leads just behind the function's entry, where the jump will lie.";
    EntryCrossesPage = "HP0503", Error, "the entry crosses a page",
        "The jump could not be written in one piece.";
    FlagsLive = "HP0504", Error, "the function reads flags at its entry",
        "The test that the thunk makes would change them.";
    CannotDisplace = "HP0505", Error, "an instruction at the entry cannot be moved",
        "The first instructions must run elsewhere while the patch is armed.";
    Coroutines = "HP0506", Error, "the program switches stacks by itself",
        "It imports makecontext or swapcontext, or has code of its own that keeps the stack pointer and takes another one: frames of replaced functions may be parked where no thread's stack shows them. If the replaced functions never switch, accept with --allow HP0506.";
    GoesOn = "HP0507", Note, "a thread may never leave the function",
        "A patch takes effect when no thread is in a function that it replaces. This one has no way out, like a main loop, so hp apply will end with exit 4 and name the thread. With hp apply --relaxed the thread goes on in the old code while every call leads to the new one, if this is proven to be harmless: no layout, number, release or variable changed, the function makes the same calls as before, nothing in it leads to its own entry, and nothing else is replaced. If other functions are replaced, only you know whether its old code gets on with their new code (no check, lock or duty has moved from the one to the other): say so with --allow HP0507=FUNCTION.";
    NotProven = "HP0601", Error, "the judge does not prove the patch",
        "What is about to be written was judged once more, by code that shares nothing with what made it, and this was wrong or could not be proven. Most likely it is a bug in hp: please report it, with both builds. No patch was written.";
}

impl Code {
    /// True if the user may accept an error of this code: a patch can be made, and only
    /// the user knows whether it is right.
    pub const fn acceptable(self) -> bool {
        matches!(
            self,
            Code::LayoutChanged
                | Code::LayoutUnproven
                | Code::NumberChanged
                | Code::ReleaseAdded
                | Code::LayoutSuspected
                | Code::TypeIdChanged
                | Code::InitialValueChanged
                | Code::ConstructorsChanged
                | Code::WalkedSectionChanged
                | Code::VariableRenamed
                | Code::StaticUnwinder
                | Code::ConstantReplaced
                | Code::SharedConstantChanged
                | Code::Coroutines
                | Code::UnnamedData
                | Code::GoesOn
        )
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Code {
    type Err = String;
    fn from_str(s: &str) -> Result<Code, String> {
        Code::ALL
            .iter()
            .copied()
            .find(|c| c.as_str().eq_ignore_ascii_case(s))
            .ok_or_else(|| format!("{s} is not a finding code"))
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}
