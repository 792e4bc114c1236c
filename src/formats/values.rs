//! Values of a tensor, whatever they are stored as.

use super::checkpoint::Checkpoint;
use super::weight_file::Stored;
use crate::error::{Error, Result};
use crate::tensor::Packing;

impl Checkpoint {
    /// The values of the tensor `name` in row-major order, as they are stored: scales that an FP8 checkpoint keeps in tensors of
    /// their own are not applied.
    ///
    /// # Errors
    /// When there is no such tensor, or it holds no real numbers that can be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let missing = || Error::unsupported(self.root(), format!("holds no tensor `{name}`"));
        self.find(name).ok_or_else(missing)?.read_f32()
    }
}

impl Stored {
    /// The values in row-major order: exact for all dtypes but f64, which is rounded.
    ///
    /// # Errors
    /// When it holds no real numbers that can be read, or the file is no longer there as it was opened.
    pub fn read_f32(&self) -> Result<Vec<f32>> {
        let unread = || {
            let what = format!("tensor `{}` is stored as {}, not as real numbers", self.info.name, self.info.dtype);
            Error::unsupported(self.path(), what)
        };
        let packing = Packing::of(&self.info.dtype).ok_or_else(unread)?;
        let data = self.view()?.data;
        let mut values = vec![0.0; packing.values_in(data.len())];
        packing.decode(data, &mut values);
        self.map.release(self.start, self.info.bytes);
        Ok(values)
    }
}
