//! The setting `predrop`: whether what the outside may not reach is dropped before the kernel makes anything of it.

use std::str::FromStr;

pub use crate::datapath::Predrop;

impl FromStr for Predrop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "generic" => Ok(Self::Generic),
            _ => Err("expected `off`, `auto`, `native` or `generic`".into()),
        }
    }
}
