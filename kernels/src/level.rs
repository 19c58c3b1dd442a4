//! Which instructions this process may use, and the macro that writes a kernel once for all of them.

use std::sync::OnceLock;

/// A set of instructions that this machine can execute.
///
/// A value above portable exists only after the processor was asked, so whoever holds one may run its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(pub(crate) Isa);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Avx512 whose gradients of inputs are sums of bf16 products ([`crate::narrow`]).
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// NEON with the dot product.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Level {
    /// Plain Rust: runs everywhere.
    pub const PORTABLE: Level = Level(Isa::Portable);

    /// The environment variable that forces a lower level.
    pub const VARIABLE: &'static str = "ONLAY_LEVEL";

    /// The levels this machine executes, lowest first.
    pub fn available() -> Vec<Level> {
        #[allow(unused_mut)]
        let mut levels = vec![Level(Isa::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            macro_rules! has { ($($f:tt)*) => { $(is_x86_feature_detected!($f))&&* } }
            if has!("avx2" "fma" "f16c") {
                levels.push(Level(Isa::Avx2));
                if has!("avx512f" "avx512bw" "avx512vl" "avx512dq" "avx512vnni") {
                    levels.push(Level(Isa::Avx512));
                    if has!("avx512bf16") {
                        levels.push(Level(Isa::Avx512Bf16));
                    }
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon")
            && std::arch::is_aarch64_feature_detected!("dotprod")
        {
            levels.push(Level(Isa::Neon));
        }
        levels
    }

    /// The level to use: the highest available one, or the one named by `ONLAY_LEVEL`.
    ///
    /// # Errors
    /// Says so when the variable names a level that does not exist or that this machine cannot execute.
    pub fn chosen() -> Result<Level, String> {
        static CHOSEN: OnceLock<Result<Level, String>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| {
                let levels = Level::available();
                match std::env::var(Self::VARIABLE) {
                    Err(_) => Ok(*levels.last().expect("portable is always there")),
                    Ok(name) => levels.iter().copied().find(|l| l.name() == name).ok_or_else(|| {
                        let names: Vec<_> = levels.iter().map(|l| l.name()).collect();
                        format!("{}={name}: this machine executes {}", Self::VARIABLE, names.join(", "))
                    }),
                }
            })
            .clone()
    }

    /// `portable`, `avx2`, `avx512`, `avx512bf16` or `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }
}

/// Stamps functions for every level.
///
/// ```text
/// levels! {
///     { fn helper(a: T) -> U { … } }            // private to the level
///     pub fn kernel[F: Format](a: T) -> U { … } // also gets a dispatching `kernel(level, a)` outside
/// }
/// ```
/// Inside, `simd` is the level's vocabulary and `at` its view of this crate (`at::dot::…`), so one kernel can call
/// another of the same level directly.
macro_rules! levels {
    (
        { $( $(#[$hm:meta])* fn $h:ident $([$($hg:ident : $hb:path),*])? ($($ha:ident : $ht:ty),* $(,)?)
             $(-> $hr:ty)? $hbody:block )* }
        $( $(#[$m:meta])* pub fn $name:ident $([$($g:ident : $b:path),*])? ($($a:ident : $t:ty),* $(,)?)
             $(-> $r:ty)? $body:block )*
    ) => {
        levels!(@module portable [allow(unused)] [
            $( $(#[$hm])* fn $h $([$($hg : $hb),*])? ($($ha : $ht),*) $(-> $hr)? $hbody )*
        ] [ $( $(#[$m])* fn $name $([$($g : $b),*])? ($($a : $t),*) $(-> $r)? $body )* ]);
        #[cfg(target_arch = "x86_64")]
        levels!(@module avx2 [target_feature(enable = "avx2,fma,f16c")] [
            $( $(#[$hm])* fn $h $([$($hg : $hb),*])? ($($ha : $ht),*) $(-> $hr)? $hbody )*
        ] [ $( $(#[$m])* fn $name $([$($g : $b),*])? ($($a : $t),*) $(-> $r)? $body )* ]);
        #[cfg(target_arch = "x86_64")]
        levels!(@module avx512 [target_feature(
            enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")] [
            $( $(#[$hm])* fn $h $([$($hg : $hb),*])? ($($ha : $ht),*) $(-> $hr)? $hbody )*
        ] [ $( $(#[$m])* fn $name $([$($g : $b),*])? ($($a : $t),*) $(-> $r)? $body )* ]);
        #[cfg(target_arch = "aarch64")]
        levels!(@module neon [target_feature(enable = "neon,dotprod")] [
            $( $(#[$hm])* fn $h $([$($hg : $hb),*])? ($($ha : $ht),*) $(-> $hr)? $hbody )*
        ] [ $( $(#[$m])* fn $name $([$($g : $b),*])? ($($a : $t),*) $(-> $r)? $body )* ]);
        $(
            $(#[$m])*
            #[allow(unsafe_code)]
            pub fn $name $(<$($g : $b),*>)? (level: $crate::Level, $($a : $t),*) $(-> $r)? {
                match level.0 {
                    $crate::level::Isa::Portable => portable::$name $(::<$($g),*>)? ($($a),*),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a Level of this value exists only after its instructions were detected.
                    $crate::level::Isa::Avx2 => unsafe { avx2::$name $(::<$($g),*>)? ($($a),*) },
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    $crate::level::Isa::Avx512 | $crate::level::Isa::Avx512Bf16 => unsafe { avx512::$name $(::<$($g),*>)? ($($a),*) },
                    #[cfg(target_arch = "aarch64")]
                    // SAFETY: as above.
                    $crate::level::Isa::Neon => unsafe { neon::$name $(::<$($g),*>)? ($($a),*) },
                }
            }
        )*
    };
    (@module $level:ident [$feature:meta] [
        $( $(#[$hm:meta])* fn $h:ident $([$($hg:ident : $hb:path),*])? ($($ha:ident : $ht:ty),*)
           $(-> $hr:ty)? $hbody:block )*
    ] [
        $( $(#[$m:meta])* fn $name:ident $([$($g:ident : $b:path),*])? ($($a:ident : $t:ty),*)
           $(-> $r:ty)? $body:block )*
    ]) => {
        #[doc(hidden)]
        // A function with target features is not a closure, whatever clippy thinks.
        #[allow(unused_imports, dead_code, missing_docs, clippy::redundant_closure)]
        pub(crate) mod $level {
            use super::*;
            use $crate::simd::$level as simd;
            use $crate::at::$level as at;
            $( $(#[$hm])* #[inline] #[$feature] pub(crate) fn $h $(<$($hg : $hb),*>)? ($($ha : $ht),*)
               $(-> $hr)? $hbody )*
            $( #[inline] #[$feature] pub(crate) fn $name $(<$($g : $b),*>)? ($($a : $t),*) $(-> $r)? $body )*
        }
    };
}
