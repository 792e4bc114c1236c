//! Factors of a stack in the form that PEFT has today, whatever form they lie in. Nothing is copied: elements are picked as they
//! are read.

use std::sync::Arc;

use crate::adapters::Lies;
use crate::formats::Stored;
use crate::naming::experts::peft::Order;
use crate::tensor::{Shape, TensorInfo, usize_of};

/// A and B with the sides and the order of today; `experts` divides the rows of A.
pub fn as_today(lies: &Lies, experts: u64) -> (Stored, Stored) {
    let (down, up) = (&lies.down, &lies.up);
    let ((rows, x), (y, _)) = (down.rows_cols(), up.rows_cols());
    let experts = usize_of(experts);
    let rank = rows / experts;
    let column = |expert: usize, k: usize| match lies.order {
        Order::RankMajor => k * experts + expert,
        Order::GroupedByExpert => expert * rank + k,
    };
    // Expert and k of every column of B as it is today.
    let columns = || (0..rows).map(move |at| (at % experts, at / experts));
    if !lies.turned {
        let up = picked(up, (0..y).map(|row| row * rows).collect(), columns().map(|(e, k)| column(e, k)).collect());
        return (down.clone(), up);
    }
    let new_down = picked(
        up,
        (0..rows).map(|row| column(row / rank, row % rank)).collect(),
        (0..y).map(|col| col * rows).collect(),
    );
    let new_up = picked(down, (0..x).collect(), columns().map(|(e, k)| (e * rank + k) * x).collect());
    // Every factor keeps the name of its role.
    (named(new_down, down), named(new_up, up))
}

fn named(stored: Stored, of: &Stored) -> Stored {
    Stored { info: TensorInfo { name: of.info.name.clone(), ..stored.info }, ..stored }
}

/// The matrix whose element (i, j) is element `rows[i] + cols[j]` of `source`.
fn picked(source: &Stored, rows: Vec<usize>, cols: Vec<usize>) -> Stored {
    let shape = Shape::from([rows.len() as u64, cols.len() as u64]);
    let item = usize_of(source.info.bytes) / (rows.len() * cols.len()).max(1);
    let info = TensorInfo { shape, ..source.info.clone() };
    let (from, bytes) = (source.clone(), source.info.bytes);
    let made = source.map.made(bytes, move |offset, out| {
        let data = from.read(0, from.info.bytes)?;
        let mut at = usize_of(offset);
        let mut rest = out;
        while !rest.is_empty() {
            let (element, skipped) = (at / item, at % item);
            let count = (item - skipped).min(rest.len());
            let place = (rows[element / cols.len()] + cols[element % cols.len()]) * item + skipped;
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(&data[place..place + count]);
            (at, rest) = (at + count, later);
        }
        Ok(())
    });
    Stored { map: Arc::new(made), info, start: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::Factor;
    use crate::io::MappedFile;
    use crate::tensor::Dtype;

    fn stored(values: &[f32], shape: [u64; 2], name: &str) -> Stored {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let file = MappedFile::open("Cargo.toml".as_ref()).expect("a file");
        let info = TensorInfo {
            name: name.into(),
            dtype: Dtype::F32,
            shape: Shape::from(shape),
            offset: 0,
            bytes: bytes.len() as u64,
        };
        Stored::held(&file, info, bytes)
    }

    fn values(stored: &Stored) -> Vec<f32> {
        Factor::new(stored).expect("floats").to_vec().expect("held")
    }

    /// Two experts of rank 2: A `[4, 3]`, B `[2, 4]` with element 10·expert + k in the column of (expert, k).
    fn pair(order: Order) -> Lies {
        let down = stored(&(0..12).map(|value| value as f32).collect::<Vec<_>>(), [4, 3], "a");
        let row = match order {
            Order::RankMajor => [0.0, 10.0, 1.0, 11.0],
            Order::GroupedByExpert => [0.0, 1.0, 10.0, 11.0],
        };
        let up = stored(&[row, row.map(|value| value + 100.0)].concat(), [2, 4], "b");
        Lies { down, up, turned: false, order }
    }

    #[test]
    fn grouped_columns_are_put_in_order() {
        let (down, up) = as_today(&pair(Order::GroupedByExpert), 2);
        assert_eq!(values(&down), values(&pair(Order::RankMajor).down));
        assert_eq!(values(&up), values(&pair(Order::RankMajor).up));
    }

    #[test]
    fn swapped_factors_change_places_expert_by_expert() {
        for order in [Order::RankMajor, Order::GroupedByExpert] {
            let (down, up) = as_today(&Lies { turned: true, ..pair(order) }, 2);
            assert_eq!((down.info.name.as_str(), down.rows_cols()), ("a", (4, 2)));
            assert_eq!(values(&down), [0.0, 100.0, 1.0, 101.0, 10.0, 110.0, 11.0, 111.0], "{order:?}");
            assert_eq!((up.info.name.as_str(), up.rows_cols()), ("b", (3, 4)));
            assert_eq!(values(&up), [0.0, 6.0, 3.0, 9.0, 1.0, 7.0, 4.0, 10.0, 2.0, 8.0, 5.0, 11.0], "{order:?}");
        }
    }

    #[test]
    fn any_bytes_of_it_can_be_read() {
        let (_, up) = as_today(&Lies { turned: true, ..pair(Order::RankMajor) }, 2);
        let all = up.read(0, up.info.bytes).expect("made").into_owned();
        assert_eq!(up.read(3, 7).expect("made").into_owned(), all[3..10]);
    }
}
