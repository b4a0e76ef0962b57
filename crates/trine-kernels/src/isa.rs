//! Instruction sets, found at run time, and the macro that compiles one body for each of them.

use crate::KernelError;

/// An instruction set that kernels are compiled for. Those of one processor family are ordered from
/// the poorest to the richest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Whatever the target guarantees, as the compiler uses it: SSE2 on x86-64, NEON on aarch64.
    Portable,
    /// The same on aarch64, with register tiles of our own.
    Neon,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with BF16 dot products.
    Avx512Bf16,
    /// The same and the matrix tiles of AMX, which multiply bf16, and f32 in parts of bf16.
    Amx,
}

impl Isa {
    /// All instruction sets, the poorest first.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512, Self::Avx512Bf16, Self::Amx];

    /// The richest instruction set of this processor.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            match (avx2, avx512, avx512 && is_x86_feature_detected!("avx512bf16")) {
                (_, _, true) if amx::is_usable() => Self::Amx,
                (_, _, true) => Self::Avx512Bf16,
                (_, true, _) => Self::Avx512,
                (true, ..) => Self::Avx2,
                (false, false, false) => Self::Portable,
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            Self::Neon
        } else {
            Self::Portable
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        Self::Portable
    }

    /// Whether a processor whose richest instruction set is `best` has this one.
    pub fn is_within(self, best: Self) -> bool {
        self == Self::Portable || (self <= best && (self == Self::Neon) == (best == Self::Neon))
    }

    /// The richest instruction set within this one in which products of f32 are chains of fused multiply-adds, with
    /// the same bits on every processor.
    #[must_use]
    pub fn without_tiles(self) -> Self {
        self.min(Self::Avx512Bf16)
    }

    /// The name as printed in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// `self` if this processor has it: the check that makes the `unsafe` calls below sound.
    pub(crate) fn checked(self) -> Result<Self, KernelError> {
        let best = Self::detect();
        if self.is_within(best) {
            return Ok(self);
        }
        Err(KernelError::Isa { isa: self.name(), best: best.name() })
    }
}

/// Whether the tiles may be used: the processor has them, and the system has given them to this
/// process.
#[cfg(target_arch = "x86_64")]
mod amx {
    /// Tiles and their bf16 products, in EDX of leaf 7.
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;

    #[cfg(all(target_os = "linux", not(miri)))]
    pub(super) fn is_usable() -> bool {
        // SAFETY: every x86-64 processor has the instruction.
        #[allow(unused_unsafe, reason = "the call is unsafe in the oldest compiler supported")]
        let features = unsafe { std::arch::x86_64::__cpuid_count(7, 0) }.edx;
        features & AMX_BF16 != 0 && features & AMX_TILE != 0 && is_permitted()
    }

    #[cfg(not(all(target_os = "linux", not(miri))))]
    pub(super) fn is_usable() -> bool {
        false
    }

    /// Linux gives the tiles' state to processes that ask for it. Asking again changes nothing.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn is_permitted() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
        const XFEATURE_XTILEDATA: u64 = 18;
        let result: i64;
        // SAFETY: the call takes two numbers, touches no memory of ours, and fails with a number.
        unsafe {
            std::arch::asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}

/// Defines a function whose body is compiled once for each instruction set, and which takes the
/// [`Isa`] to use as its first argument. Loops vectorise by the compiler; since the compiler never
/// reorders floating-point operations, every instruction set gives the same bits.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident<$($t:ident: $bound:path),+>(
        $($arg:ident: $type:ty),* $(,)?
    ) $(-> $ret:ty)? $body:block)+) => {$(
        $(#[$meta])*
        $vis fn $name<$($t: $bound),+>(isa: $crate::Isa, $($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$($t: $bound),+>($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($t: $bound),+>($($arg: $type),*) $(-> $ret)? {
                body::<$($t),+>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512<$($t: $bound),+>($($arg: $type),*) $(-> $ret)? {
                body::<$($t),+>($($arg),*)
            }

            match isa {
                // SAFETY: `CpuOps` only holds an `Isa` that `Isa::checked` found on this processor.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 | $crate::Isa::Avx512Bf16 | $crate::Isa::Amx => unsafe {
                    avx512::<$($t),+>($($arg),*)
                },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => unsafe { avx2::<$($t),+>($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Portable | $crate::Isa::Neon => body::<$($t),+>($($arg),*),
                // On aarch64 every function is compiled with NEON.
                #[cfg(not(target_arch = "x86_64"))]
                $crate::Isa::Portable
                | $crate::Isa::Neon
                | $crate::Isa::Avx2
                | $crate::Isa::Avx512
                | $crate::Isa::Avx512Bf16
                | $crate::Isa::Amx => body::<$($t),+>($($arg),*),
            }
        }
    )+};
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_the_poorer_sets_of_its_own_family() {
        let has = |best| Isa::ALL.into_iter().filter(|isa| isa.is_within(best)).collect::<Vec<_>>();
        assert_eq!(has(Isa::Portable), [Isa::Portable]);
        assert_eq!(has(Isa::Neon), [Isa::Portable, Isa::Neon]);
        assert_eq!(has(Isa::Avx512), [Isa::Portable, Isa::Avx2, Isa::Avx512]);
        assert_eq!(has(Isa::Amx).len(), Isa::ALL.len() - 1);
        let without_tiles = Isa::ALL.map(Isa::without_tiles);
        assert_eq!(without_tiles[..5], Isa::ALL[..5]);
        assert_eq!(without_tiles[5], Isa::Avx512Bf16);
        assert!(Isa::detect().checked().is_ok());
        #[cfg(target_arch = "aarch64")]
        assert_eq!(Isa::detect(), Isa::Neon);
    }
}
