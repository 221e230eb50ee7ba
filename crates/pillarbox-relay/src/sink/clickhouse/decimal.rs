//! Decimals: PostgreSQL's numeric as the one number that a Decimal column keeps. Pure.
//!
//! Format: `numeric_send` in PostgreSQL's `numeric.c`: how many groups of four digits, the weight of the
//! first group as a power of 10,000, sign, shown scale, then the groups.

use super::value::{FINER, Misfit, TOO_LARGE, TOO_SMALL};

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITIES: [u16; 2] = [0xD000, 0xF000];

/// A number below 10^77, in 64-bit limbs, the lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Digits([u64; 4]);

impl Digits {
    /// Appends a decimal digit, unless that makes more than `precision` of them. Leading zeros count
    /// for nothing.
    fn push(&mut self, digit: u64, taken: &mut u32, precision: u32) -> Option<()> {
        if *taken == 0 && digit == 0 {
            return Some(());
        }
        *taken += 1;
        if *taken > precision {
            return None;
        }
        let mut carry = u128::from(digit);
        for limb in &mut self.0 {
            carry += u128::from(*limb) * 10;
            *limb = carry as u64;
            carry >>= 64;
        }
        Some(())
    }

    fn bytes(self, is_negative: bool) -> [u8; 32] {
        let mut bytes = [0; 32];
        let mut carry = is_negative;
        for (limb, bytes) in self.0.into_iter().zip(bytes.chunks_exact_mut(8)) {
            let limb = if is_negative { !limb } else { limb };
            let (limb, overflows) = limb.overflowing_add(u64::from(carry));
            carry = overflows;
            bytes.copy_from_slice(&limb.to_le_bytes());
        }
        bytes
    }
}

/// The number of a Decimal with so many digits, so many of them after the point.
pub(super) fn from_numeric(field: &[u8], precision: u32, scale: u32) -> Result<[u8; 32], Misfit> {
    let (head, groups) = field.split_at_checked(8).ok_or(Misfit::Malformed)?;
    let word = |at: usize| [head[at], head[at + 1]];
    let count = usize::from(u16::from_be_bytes(word(0)));
    let weight = i64::from(i16::from_be_bytes(word(2)));
    let sign = u16::from_be_bytes(word(4));
    match sign {
        0 | NEGATIVE => {}
        NAN => return Err(Misfit::Range("it is NaN")),
        sign if INFINITIES.contains(&sign) => return Err(Misfit::Range("it is infinite")),
        _ => return Err(Misfit::Malformed),
    }
    if groups.len() != count * 2 {
        return Err(Misfit::Malformed);
    }
    let is_negative = sign == NEGATIVE;
    let too_far = if is_negative { TOO_SMALL } else { TOO_LARGE };
    let (mut digits, mut taken) = (Digits([0; 4]), 0);
    // The power of ten of the digit that comes next, as the column counts.
    let mut power = weight * 4 + 3 + i64::from(scale);
    for group in groups.as_chunks::<2>().0 {
        let group = u64::from(u16::from_be_bytes(*group));
        for digit in [group / 1000, group / 100 % 10, group / 10 % 10, group % 10] {
            if power >= 0 {
                digits.push(digit, &mut taken, precision).ok_or(too_far)?;
            } else if digit != 0 {
                return Err(FINER);
            }
            power -= 1;
        }
    }
    // Zeros at the end are not sent.
    while power >= 0 && taken > 0 {
        digits.push(0, &mut taken, precision).ok_or(too_far)?;
        power -= 1;
    }
    Ok(digits.bytes(is_negative))
}

/// The same of an integer.
pub(super) fn from_int(value: i64, precision: u32, scale: u32) -> Result<[u8; 32], Misfit> {
    let is_negative = value < 0;
    let too_far = if is_negative { TOO_SMALL } else { TOO_LARGE };
    let (mut digits, mut taken) = (Digits([0; 4]), 0);
    for digit in itoa::Buffer::new().format(value.unsigned_abs()).bytes() {
        let digit = u64::from(digit - b'0');
        digits.push(digit, &mut taken, precision).ok_or(too_far)?;
    }
    for _ in 0..scale {
        digits.push(0, &mut taken, precision).ok_or(too_far)?;
    }
    Ok(digits.bytes(is_negative))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As PostgreSQL sends it: groups without zeros at either end.
    fn numeric(unscaled: i128, scale: u32) -> Vec<u8> {
        let padding = (4 - scale % 4) % 4;
        let digits = format!(
            "{}{}",
            unscaled.unsigned_abs(),
            "0".repeat(padding as usize)
        );
        let after = (scale + padding) as usize / 4;
        let digits = format!("{}{digits}", "0".repeat((4 - digits.len() % 4) % 4));
        let mut groups: Vec<u16> = digits
            .as_bytes()
            .chunks(4)
            .map(|group| str::from_utf8(group).unwrap().parse().unwrap())
            .collect();
        let mut weight = groups.len() as i16 - after as i16 - 1;
        while groups.first() == Some(&0) {
            groups.remove(0);
            weight -= 1;
        }
        while groups.last() == Some(&0) {
            groups.pop();
        }
        let sign = if unscaled < 0 { NEGATIVE } else { 0 };
        let head = [
            groups.len() as u16,
            weight.cast_unsigned(),
            sign,
            scale as u16,
        ];
        head.into_iter()
            .chain(groups)
            .flat_map(u16::to_be_bytes)
            .collect()
    }

    fn wide(unscaled: i128) -> [u8; 32] {
        let mut bytes = if unscaled < 0 { [0xFF; 32] } else { [0; 32] };
        bytes[..16].copy_from_slice(&unscaled.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn a_numeric_is_kept_digit_for_digit(unscaled in -(10_i128.pow(38) - 1)..10_i128.pow(38), scale in 0_u32..38, more in 0_u32..20) {
            let field = numeric(unscaled, scale);
            prop_assert_eq!(from_numeric(&field, 38, scale), Ok(wide(unscaled)));
            prop_assert!(from_numeric(&field, 76, scale + more).is_ok());
            let digits = unscaled.unsigned_abs().to_string().len() as u32;
            if unscaled != 0 && digits > 1 {
                let too_far = if unscaled < 0 { TOO_SMALL } else { TOO_LARGE };
                prop_assert_eq!(from_numeric(&field, digits - 1, scale), Err(too_far));
            }
            if scale > 0 && unscaled % 10 != 0 {
                prop_assert_eq!(from_numeric(&field, 76, scale - 1), Err(FINER));
            }
        }

        #[test]
        fn an_integer_is_a_numeric(value in any::<i64>(), scale in 0_u32..19) {
            let field = numeric(value.into(), 0);
            prop_assert_eq!(from_int(value, 38, scale), from_numeric(&field, 38, scale));
            prop_assert_eq!(from_int(value, 9, 0), from_numeric(&field, 9, 0));
        }

        #[test]
        fn no_bytes_are_a_panic(field: Vec<u8>, precision in 1_u32..77) {
            let _ = from_numeric(&field, precision, precision / 2);
        }
    }
}
