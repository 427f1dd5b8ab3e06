//! Global functions of the object: the verifier looks at each once, for whatever its arguments may be, and not again at each call
//! with all that led there (Linux 5.6, commit 51c39bb1d5d1; pointers since 5.12, commit e5069b9c23b3). What goes in and out is
//! numbers and pointers to whole structures.

use hydra_common::verdict::Reason;

/// Beside the reason in the number that says an error.
const FAILED: u32 = 0x100;

/// An answer as the number that a global function returns.
#[inline(always)]
pub const fn coded(answer: Result<bool, Reason>) -> u32 {
    match answer {
        Ok(yes) => yes as u32,
        Err(reason) => FAILED | reason as u32,
    }
}

/// The answer to a pointer that nobody passes: denied, the tables contradict themselves.
pub const BAD: u32 = coded(Err(Reason::BadTable));

/// The answer again.
#[inline(always)]
pub fn decoded(answer: u32) -> Result<bool, Reason> {
    if answer & FAILED == 0 { Ok(answer != 0) } else { Err(Reason::from_row(answer as u8)) }
}

/// The same of an answer that is only ever yes.
#[inline(always)]
pub const fn coded_unit(answer: Result<(), Reason>) -> u32 {
    match answer {
        Ok(()) => coded(Ok(true)),
        Err(reason) => coded(Err(reason)),
    }
}

/// And back.
#[inline(always)]
pub fn decoded_unit(answer: u32) -> Result<(), Reason> {
    decoded(answer).map(|_| ())
}

/// Makes `fn name(…)` and the global function `symbol` behind it, which returns a number or nothing. An argument is `of T`, `into T`
/// or `perhaps T` (a shared, an exclusive and an optional reference), `live T` (what other CPUs write too, by its address) or
/// `plain T`. The verifier takes each pointer for one that may be null, though no caller has such: the answer then is what stands
/// behind `or`.
macro_rules! global {
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident = $symbol:ident($($arg:ident: $how:ident $type:ty),*) $body:block
    ) => {
        $(#[$doc])*
        #[inline(always)]
        $vis fn $name($($arg: global!(@safe $how $type)),*) {
            // What comes back is nothing.
            let _ = $symbol($(global!(@pass $how $arg)),*);
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $symbol($($arg: global!(@raw $how $type)),*) -> u32 {
            $(global!(@take $how $arg, 0);)*
            $body
            0
        }
    };
    (
        $(#[$doc:meta])*
        $vis:vis fn $name:ident = $symbol:ident($($arg:ident: $how:ident $type:ty),*)
            -> u32 or $otherwise:expr; $body:block
    ) => {
        $(#[$doc])*
        #[inline(always)]
        $vis fn $name($($arg: global!(@safe $how $type)),*) -> u32 {
            $symbol($(global!(@pass $how $arg)),*)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $symbol($($arg: global!(@raw $how $type)),*) -> u32 {
            $(global!(@take $how $arg, $otherwise);)*
            $body
        }
    };
    (@safe of $type:ty) => { &$type };
    (@safe into $type:ty) => { &mut $type };
    (@safe perhaps $type:ty) => { Option<&$type> };
    (@safe live $type:ty) => { *mut $type };
    (@safe plain $type:ty) => { $type };
    (@raw of $type:ty) => { *const $type };
    (@raw into $type:ty) => { *mut $type };
    (@raw perhaps $type:ty) => { *const $type };
    (@raw live $type:ty) => { *mut $type };
    (@raw plain $type:ty) => { $type };
    (@pass of $arg:ident) => { &raw const *$arg };
    (@pass into $arg:ident) => { &raw mut *$arg };
    (@pass perhaps $arg:ident) => { $arg.map_or(core::ptr::null(), |it| &raw const *it) };
    (@pass live $arg:ident) => { $arg };
    (@pass plain $arg:ident) => { $arg };
    (@take of $arg:ident, $otherwise:expr) => {
        // SAFETY: made from a reference by the only caller.
        let Some($arg) = (unsafe { $arg.as_ref() }) else { return $otherwise };
    };
    (@take into $arg:ident, $otherwise:expr) => {
        // SAFETY: made from an exclusive reference by the only caller.
        let Some($arg) = (unsafe { $arg.as_mut() }) else { return $otherwise };
    };
    (@take perhaps $arg:ident, $otherwise:expr) => {
        // SAFETY: made from a reference by the only caller, or null.
        let $arg = unsafe { $arg.as_ref() };
    };
    (@take live $arg:ident, $otherwise:expr) => {
        if $arg.is_null() {
            return $otherwise;
        }
    };
    (@take plain $arg:ident, $otherwise:expr) => {};
}
pub(crate) use global;
