//! Thin by design: words in, a JSON document out. A verb runs on a thread of its own without the interpreter's lock; meanwhile this
//! thread looks for signals and tells how far it is.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use lorakit::cli::{self, Host};
use lorakit::formats::Stored;
use lorakit::plan::Progress;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// How often signals are looked for and progress is told.
const EVERY: Duration = Duration::from_millis(50);

/// How far a run is.
#[derive(Default)]
struct Heard {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress for Heard {
    fn begin(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    fn finish(&self) {}
}

/// The exception of a failure, made where the classes are.
fn raised(py: Python<'_>, error: &lorakit::Error) -> PyErr {
    let document = lorakit::report::json(&lorakit::report::Failure::from(error));
    let text = String::from_utf8_lossy(&document).into_owned();
    let made = py.import("lorakit._errors").and_then(|module| module.call_method1("made", (text,)));
    made.map_or_else(|error| error, PyErr::from_value)
}

/// Runs the verb that `words` say. Gives its report as JSON.
#[pyfunction]
#[pyo3(signature = (words, progress=None))]
fn run(py: Python<'_>, words: Vec<OsString>, progress: Option<Py<PyAny>>) -> PyResult<String> {
    let heard = Arc::new(Heard::default());
    let cancel = Arc::new(AtomicBool::new(false));
    let host = Host { cancel: Arc::clone(&cancel), progress: Arc::clone(&heard) as Arc<_> };
    let (send, receive) = channel();
    let receive = Mutex::new(receive);
    let worker = thread::spawn(move || {
        // The receiver waits for this.
        let _ = send.send(cli::run_for(host, &words));
    });
    let mut stopped: Option<PyErr> = None;
    let mut told = None;
    let ran = loop {
        let next = py.detach(|| receive.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(EVERY));
        let stop = |problem: PyErr, stopped: &mut Option<PyErr>| {
            cancel.store(true, Ordering::Relaxed);
            stopped.get_or_insert(problem);
        };
        if stopped.is_none() {
            if let Err(problem) = py.check_signals() {
                stop(problem, &mut stopped);
            }
            let far = (heard.done.load(Ordering::Relaxed), heard.total.load(Ordering::Relaxed));
            if let (Some(progress), true) = (&progress, far.1 > 0 && told != Some(far)) {
                told = Some(far);
                if let Err(problem) = progress.call1(py, far) {
                    stop(problem, &mut stopped);
                }
            }
        }
        match next {
            Ok(ran) => break Some(ran),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break None,
        }
    };
    let _ = py.detach(|| worker.join());
    match (stopped, ran) {
        (Some(problem), _) => Err(problem),
        (None, Some(Ok(ran))) => match ran.failed {
            None => Ok(ran.document),
            Some(error) => Err(raised(py, &error)),
        },
        (None, Some(Err(error))) => Err(raised(py, &error)),
        (None, None) => Err(pyo3::exceptions::PyRuntimeError::new_err("the run ended without a result")),
    }
}

/// The program itself.
#[pyfunction]
fn main(py: Python<'_>, words: Vec<OsString>) -> u8 {
    py.detach(|| cli::run(words.into_iter()))
}

/// Where the bytes of a tensor are: file, first byte, and the bytes themselves where no file has them as they are; dtype and shape.
type Place<'py> = (PathBuf, u64, u64, Option<Bound<'py, PyBytes>>, String, Vec<u64>);

fn place<'py>(py: Python<'py>, stored: &Stored) -> PyResult<Place<'py>> {
    let held = if stored.map.is_held() {
        let bytes = stored.read(0, stored.info.bytes).map_err(|error| raised(py, &error))?;
        Some(PyBytes::new(py, &bytes))
    } else {
        None
    };
    let shape = stored.info.shape.as_slice().to_vec();
    Ok((stored.path().to_path_buf(), stored.start, stored.info.bytes, held, stored.info.dtype.name().to_owned(), shape))
}

/// An adapter that was opened.
#[pyclass(frozen)]
struct Adapter(lorakit::Adapter);

#[pymethods]
impl Adapter {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| lorakit::Adapter::open(&path)).map(Self).map_err(|error| raised(py, &error))
    }

    /// Its dialect.
    #[getter]
    fn dialect(&self) -> &'static str {
        self.0.dialect()
    }

    /// Its modules as JSON.
    fn modules(&self) -> String {
        String::from_utf8_lossy(&lorakit::formats::json::render(&self.0.modules())).into_owned()
    }

    /// Where A and B of a module are.
    fn factors<'py>(&self, py: Python<'py>, path: &str) -> PyResult<Option<[Place<'py>; 2]>> {
        let Some([down, up]) = self.0.factors(path) else { return Ok(None) };
        Ok(Some([place(py, &down)?, place(py, &up)?]))
    }

    /// ΔW in f32, with rows and columns.
    fn delta<'py>(&self, py: Python<'py>, path: &str) -> PyResult<(Bound<'py, PyBytes>, usize, usize)> {
        let found = py.detach(|| self.0.delta(path).map(|(values, sizes)| (bytes(&values), sizes)));
        let (bytes, [rows, cols]) = found.map_err(|error| raised(py, &error))?;
        Ok((PyBytes::new(py, &bytes), rows, cols))
    }

    /// The singular values of ΔW, largest first.
    fn singular_values(&self, py: Python<'_>, path: &str) -> PyResult<Vec<f64>> {
        py.detach(|| self.0.singular_values(path)).map_err(|error| raised(py, &error))
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A model that was opened.
#[pyclass(frozen)]
struct Checkpoint(lorakit::Checkpoint);

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| lorakit::Checkpoint::open(&path)).map(Self).map_err(|error| raised(py, &error))
    }

    /// The names of its tensors.
    fn names(&self) -> Vec<String> {
        self.0.tensors().map(|info| info.name.clone()).collect()
    }

    /// Where a tensor is.
    fn place<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Option<Place<'py>>> {
        self.0.find(name).map(|stored| place(py, &stored)).transpose()
    }
}

/// The module.
#[pymodule]
fn _lorakit(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(run, module)?)?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_class::<Adapter>()?;
    module.add_class::<Checkpoint>()
}
