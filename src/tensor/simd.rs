//! One body of code, compiled once per instruction set and chosen when the program runs.
//!
//! A kernel is a plain `#[inline(always)]` function over slices and small arrays; `per_cpu!` compiles it for AVX-512,
//! for AVX2 with FMA and for whatever machine the crate is built for, and the compiler vectorises each copy. All of
//! them do the same IEEE operations in the same order, so they agree bit for bit, and tests compare them.
//! `unsafe` is the call into such a copy, for which a [`Level`] is the proof that the CPU can run it, the instructions that
//! `vectors!` names, for which their type is the proof, and [`prefetch`].

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::code::{Code, F16};

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

/// Whether everything the AVX-512 copies are compiled with is there. `--cfg without_avx512` leaves them aside: so a race on this
/// machine tells what one without them gets.
#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    !cfg!(without_avx512)
        && has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// `W` numbers at once, in a register of an instruction set. A value of the set is the proof that the CPU can run it.
pub(super) trait Simd<const W: usize>: Copy {
    /// `W` numbers.
    type Vector: Copy;
    /// The numbers of an array.
    fn load(self, values: &[f32; W]) -> Self::Vector;
    /// An array of the numbers.
    fn store(self, vector: Self::Vector) -> [f32; W];
    /// The same number `W` times.
    fn splat(self, value: f32) -> Self::Vector;
    /// f16 as f32.
    fn widen_f16(self, codes: &[[u8; 2]; W]) -> Self::Vector;
    /// The levels of codes below 16.
    fn look_up(self, table: &[f32; 16], codes: &[u8; W]) -> Self::Vector;
    /// f32 to the nearest f16, as `code::F16` does it.
    fn narrow_f16(self, vector: Self::Vector) -> [[u8; 2]; W];
    /// left + right, lane by lane.
    fn add(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// left − right, lane by lane.
    fn sub(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// left · right, lane by lane.
    fn mul(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// left · right + sum in one rounding, lane by lane.
    fn mul_add(self, left: Self::Vector, right: Self::Vector, sum: Self::Vector) -> Self::Vector;
    /// The smaller, lane by lane; `right` where one is NaN.
    fn least(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// The larger, lane by lane; `right` where one is NaN.
    fn most(self, left: Self::Vector, right: Self::Vector) -> Self::Vector;
    /// The larger of `largest`, which is not negative, and |value|, lane by lane; which of them, where the value is NaN, is open.
    fn largest(self, value: Self::Vector, largest: Self::Vector) -> Self::Vector;
    /// `counts`, whose lanes are u32 by their bits, and one more where left ≠ right.
    fn count_differing(self, counts: Self::Vector, left: Self::Vector, right: Self::Vector) -> Self::Vector;
}

/// Vectors of whatever the crate is built for, by the compiler.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl<const W: usize> Simd<W> for Portable {
    type Vector = [f32; W];
    #[inline(always)]
    fn load(self, values: &[f32; W]) -> [f32; W] {
        *values
    }
    #[inline(always)]
    fn store(self, vector: [f32; W]) -> [f32; W] {
        vector
    }
    #[inline(always)]
    fn splat(self, value: f32) -> [f32; W] {
        [value; W]
    }
    #[inline(always)]
    fn widen_f16(self, codes: &[[u8; 2]; W]) -> [f32; W] {
        lanes(|i| F16::widen(codes[i]))
    }
    #[inline(always)]
    fn look_up(self, table: &[f32; 16], codes: &[u8; W]) -> [f32; W] {
        lanes(|i| table[usize::from(codes[i] & 15)])
    }
    #[inline(always)]
    fn narrow_f16(self, vector: [f32; W]) -> [[u8; 2]; W] {
        lanes(|i| F16::nearest(vector[i]))
    }
    #[inline(always)]
    fn add(self, left: [f32; W], right: [f32; W]) -> [f32; W] {
        lanes(|i| left[i] + right[i])
    }
    #[inline(always)]
    fn sub(self, left: [f32; W], right: [f32; W]) -> [f32; W] {
        lanes(|i| left[i] - right[i])
    }
    #[inline(always)]
    fn mul(self, left: [f32; W], right: [f32; W]) -> [f32; W] {
        lanes(|i| left[i] * right[i])
    }
    #[inline(always)]
    fn mul_add(self, left: [f32; W], right: [f32; W], sum: [f32; W]) -> [f32; W] {
        lanes(|i| left[i].mul_add(right[i], sum[i]))
    }
    #[inline(always)]
    fn least(self, left: [f32; W], right: [f32; W]) -> [f32; W] {
        lanes(|i| if left[i] < right[i] { left[i] } else { right[i] })
    }
    #[inline(always)]
    fn most(self, left: [f32; W], right: [f32; W]) -> [f32; W] {
        lanes(|i| if left[i] > right[i] { left[i] } else { right[i] })
    }
    #[inline(always)]
    fn largest(self, value: [f32; W], largest: [f32; W]) -> [f32; W] {
        lanes(|i| if value[i].abs() > largest[i] { value[i].abs() } else { largest[i] })
    }
    #[inline(always)]
    fn count_differing(self, counts: [f32; W], left: [f32; W], right: [f32; W]) -> [f32; W] {
        lanes(|i| f32::from_bits(counts[i].to_bits() + u32::from(left[i] != right[i])))
    }
}

/// `std::array::from_fn`, which is a call where the compiler thinks so.
#[inline(always)]
pub(super) fn lanes<const W: usize, T: bytemuck::Zeroable + Copy>(mut value: impl FnMut(usize) -> T) -> [T; W] {
    let mut values = [T::zeroed(); W];
    for (i, to) in values.iter_mut().enumerate() {
        *to = value(i);
    }
    values
}

/// The vectors of an instruction set: its name, lanes, features and type, and what it has for every method of [`Simd`].
#[cfg(target_arch = "x86_64")]
macro_rules! vectors {
    ($set:ident, $lanes:literal, $features:literal, $vector:ident;
     $load:ident, $store:ident, $($method:ident($($arg:ident: $type:ty),*) -> $output:ty = $body:expr;)*) => {
        /// See [`Set`].
        #[derive(Clone, Copy)]
        pub(super) struct $set(());

        impl $set {
            /// Where its features are there.
            #[inline]
            #[target_feature(enable = $features)]
            pub(super) fn new() -> Self {
                Self(())
            }
        }

        #[allow(unsafe_code)]
        impl Simd<$lanes> for $set {
            type Vector = $vector;
            #[inline(always)]
            fn load(self, values: &[f32; $lanes]) -> $vector {
                // SAFETY: `self` was made where the features are there, and the array has as many numbers as are read.
                unsafe { $load(values.as_ptr()) }
            }
            #[inline(always)]
            fn store(self, vector: $vector) -> [f32; $lanes] {
                let mut values = [0.0; $lanes];
                // SAFETY: as above, and as many as are written.
                unsafe { $store(values.as_mut_ptr(), vector) };
                values
            }
            $(
                #[inline(always)]
                fn $method(self, $($arg: $type),*) -> $output {
                    // SAFETY: `self` was made where the features are there; nothing but registers and the arguments is touched.
                    unsafe { $body }
                }
            )*
        }
    };
}

#[cfg(target_arch = "x86_64")]
vectors! {
    Avx512, 16, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", __m512;
    _mm512_loadu_ps, _mm512_storeu_ps,
    splat(value: f32) -> __m512 = _mm512_set1_ps(value);
    widen_f16(codes: &[[u8; 2]; 16]) -> __m512 = _mm512_cvtph_ps(bytemuck::cast(*codes));
    look_up(table: &[f32; 16], codes: &[u8; 16]) -> __m512 =
        _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(bytemuck::cast(*codes)), _mm512_loadu_ps(table.as_ptr()));
    narrow_f16(vector: __m512) -> [[u8; 2]; 16] = bytemuck::cast(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(vector));
    add(left: __m512, right: __m512) -> __m512 = _mm512_add_ps(left, right);
    sub(left: __m512, right: __m512) -> __m512 = _mm512_sub_ps(left, right);
    mul(left: __m512, right: __m512) -> __m512 = _mm512_mul_ps(left, right);
    mul_add(left: __m512, right: __m512, sum: __m512) -> __m512 = _mm512_fmadd_ps(left, right, sum);
    least(left: __m512, right: __m512) -> __m512 = _mm512_min_ps(left, right);
    most(left: __m512, right: __m512) -> __m512 = _mm512_max_ps(left, right);
    // The larger absolute value, without its sign.
    largest(value: __m512, largest: __m512) -> __m512 = _mm512_range_ps::<0b1011>(value, largest);
    count_differing(counts: __m512, left: __m512, right: __m512) -> __m512 = {
        let (counts, differ) = (_mm512_castps_si512(counts), _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(left, right));
        _mm512_castsi512_ps(_mm512_mask_sub_epi32(counts, differ, counts, _mm512_set1_epi32(-1)))
    };
}

#[cfg(target_arch = "x86_64")]
vectors! {
    Avx2, 8, "avx2,fma,f16c", __m256;
    _mm256_loadu_ps, _mm256_storeu_ps,
    splat(value: f32) -> __m256 = _mm256_set1_ps(value);
    widen_f16(codes: &[[u8; 2]; 8]) -> __m256 = _mm256_cvtph_ps(bytemuck::cast(*codes));
    look_up(table: &[f32; 16], codes: &[u8; 8]) -> __m256 = {
        let codes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(*codes)));
        let [low, high]: [__m256; 2] = bytemuck::cast(*table);
        // The bit of 8, where the sign is.
        let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, codes), _mm256_permutevar8x32_ps(high, codes), is_high)
    };
    narrow_f16(vector: __m256) -> [[u8; 2]; 8] = bytemuck::cast(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(vector));
    add(left: __m256, right: __m256) -> __m256 = _mm256_add_ps(left, right);
    sub(left: __m256, right: __m256) -> __m256 = _mm256_sub_ps(left, right);
    mul(left: __m256, right: __m256) -> __m256 = _mm256_mul_ps(left, right);
    mul_add(left: __m256, right: __m256, sum: __m256) -> __m256 = _mm256_fmadd_ps(left, right, sum);
    least(left: __m256, right: __m256) -> __m256 = _mm256_min_ps(left, right);
    most(left: __m256, right: __m256) -> __m256 = _mm256_max_ps(left, right);
    largest(value: __m256, largest: __m256) -> __m256 = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0), value), largest);
    count_differing(counts: __m256, left: __m256, right: __m256) -> __m256 = {
        let differ = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NEQ_UQ>(left, right));
        _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(counts), differ))
    };
}

/// Asks for the cache line of an element that is read soon, if there is one.
#[inline(always)]
#[allow(unsafe_code)]
pub(super) fn prefetch<T>(from: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(element) = from.get(at) {
        // SAFETY: every x86-64 CPU has the instruction, which has no effect on values and cannot fail.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(element).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, at);
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
    // The same body for every level, given the vectors of that level and their lanes.
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$generic:ident : $bound:path>)? ($($arg:ident : $type:ty),* $(,)?) $(-> $output:ty)?
            = vectors of $body:ident;
    ) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name $(<$generic: $bound>)? (level: $crate::tensor::simd::Level, $($arg: $type),*) $(-> $output)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512 $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)? {
                $body::<16, _ $(, $generic)?>($crate::tensor::simd::Avx512::new(), $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$generic: $bound>)? ($($arg: $type),*) $(-> $output)? {
                $body::<8, _ $(, $generic)?>($crate::tensor::simd::Avx2::new(), $($arg),*)
            }
            match level.set() {
                // SAFETY: a `Level` of this set is only made after all its features were detected on this CPU.
                #[cfg(target_arch = "x86_64")]
                $crate::tensor::simd::Set::Avx512 => unsafe { avx512 $(::<$generic>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::tensor::simd::Set::Avx2 => unsafe { avx2 $(::<$generic>)? ($($arg),*) },
                $crate::tensor::simd::Set::Portable => {
                    $body::<4, _ $(, $generic)?>($crate::tensor::simd::Portable, $($arg),*)
                }
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
