//! One body of code, compiled once per instruction set and chosen when the program runs.
//!
//! A kernel is a plain `#[inline(always)]` function over slices and small arrays; `per_cpu!` compiles it for AVX-512,
//! for AVX2 with FMA and for whatever machine the crate is built for, and the compiler vectorises each copy. All of
//! them do the same IEEE operations in the same order, so they agree bit for bit, and tests compare them.
//! The only `unsafe` is the call into such a copy; a [`Level`] is the proof that the CPU can run it.

/// An instruction set that this CPU was seen to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Level(Set);

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Set {
    /// AVX-512 F, BW, DQ and VL (Skylake-X and Zen 4 on), without its bf16 conversion, which flushes subnormals.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX2 with FMA (Haswell and Zen on).
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the crate was built for.
    Portable,
}

impl Level {
    /// The widest one this CPU has.
    #[inline]
    pub(super) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Self(Set::Avx512);
            }
            if has_avx2() {
                return Self(Set::Avx2);
            }
        }
        Self(Set::Portable)
    }

    /// Which instruction set that is.
    #[inline(always)]
    pub(super) fn set(self) -> Set {
        self.0
    }

    /// All that this CPU has, the portable one first.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut levels = vec![Self(Set::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(has_avx2().then_some(Self(Set::Avx2)));
            levels.extend(has_avx512().then_some(Self(Set::Avx512)));
        }
        levels
    }
}

/// Whether everything the AVX2 copies are compiled with is there. (The standard library caches the answers.)
#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether everything the AVX-512 copies are compiled with is there.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Defines a function that takes a [`Level`] first and runs the copy of its body compiled for that level.
///
/// `fn name<T: Bound>(a: A) -> R = { avx512: body, avx2: body, portable: body };` where each body is the path of an
/// `#[inline(always)]` function with the arguments `(a: A) -> R`; the three may differ in const parameters only.
macro_rules! per_cpu {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$generic:ident : $bound:path>)? ($($arg:ident : $type:ty),* $(,)?) $(-> $output:ty)?
            = { avx512: $avx512:path, avx2: $avx2:path, portable: $portable:path };
    ) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name $(<$generic: $bound>)? (level: $crate::tensor::simd::Level, $($arg: $type),*) $(-> $output)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512 $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)? {
                $avx512($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)? {
                $avx2($($arg),*)
            }
            match level.set() {
                // SAFETY: a `Level` of this set is only made after all its features were detected on this CPU.
                #[cfg(target_arch = "x86_64")]
                $crate::tensor::simd::Set::Avx512 => unsafe { avx512 $(::<$generic>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::tensor::simd::Set::Avx2 => unsafe { avx2 $(::<$generic>)? ($($arg),*) },
                $crate::tensor::simd::Set::Portable => $portable($($arg),*),
            }
        }
    };
    // The same body for every level.
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$generic:ident : $bound:path>)? ($($arg:ident : $type:ty),* $(,)?) $(-> $output:ty)?
            = $body:path;
    ) => {
        $crate::tensor::simd::per_cpu! {
            $(#[$meta])*
            $vis fn $name $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)?
                = { avx512: $body, avx2: $body, portable: $body };
        }
    };
}
pub(super) use per_cpu;
