// Where pixels come from: files and the camera. Errors are sentences for the page.

const MOST_PIXELS = 50e6;
export const LEAST_SIDE = 32; // of what the network takes

/**
 * Decodes a picture.
 *
 * @param {Blob} file of any kind; `name` is used if it has one
 * @returns {Promise<ImageBitmap>} turned as its EXIF data says; colors as they are stored, as OpenCV reads them
 * @throws {Error} it is no picture, or has too many pixels
 */
export async function decode(file) {
  const name = file.name ? `“${file.name}”` : "This";
  const image = new Image();
  try {
    await new Promise((resolve, reject) => {
      Object.assign(image, { onload: resolve, onerror: reject, src: URL.createObjectURL(file) });
    });
    const { naturalWidth: width, naturalHeight: height } = image;
    if (width * height > MOST_PIXELS) {
      throw new RangeError(
        `${name} has ${width} x ${height} pixels, which is over ${MOST_PIXELS / 1e6} million: reduce it first.`,
      );
    }
    return await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch (error) {
    if (error instanceof RangeError) {
      throw error;
    }
    throw new Error(`${name} is no picture that this browser can decode: try a JPEG, PNG or WebP file.`);
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

/**
 * Opens the camera.
 *
 * @returns {Promise<HTMLVideoElement>} playing
 * @throws {Error} there is none, it was refused, or the page may not ask
 */
export async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new Error("The camera needs a page from https:// or from this computer (serve.py).");
  }
  const video = document.createElement("video");
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1280 } },
    });
    video.muted = true;
    video.playsInline = true;
    await video.play();
  } catch (error) {
    closeCamera(video);
    const known = {
      NotAllowedError: "The camera was refused: allow it for this page in the browser, and start it again.",
      NotFoundError: "No camera was found: connect one, and start it again.",
      NotReadableError: "The camera cannot be read: close the program that uses it, and start it again.",
    };
    throw new Error(known[error.name] ?? `The camera does not start: ${error.message}`);
  }
  return video;
}

/** Ends what openCamera began. */
export function closeCamera(video) {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
}

/**
 * Draws a picture, or what the camera sees now, as the network shall see it, and reads it back.
 *
 * @param {ImageBitmap | HTMLVideoElement} source
 * @param {number} longest the longer side is reduced to this
 * @param {HTMLCanvasElement} canvas is resized and drawn on
 * @returns {{pixels: ImageData, notes: string[]}} opaque; what was changed, in sentences
 * @throws {RangeError} it is too small for the network
 */
export function draw(source, longest, canvas) {
  const width = source.videoWidth ?? source.width;
  const height = source.videoHeight ?? source.height;
  const scale = Math.min(1, longest / Math.max(width, height));
  const [across, down] = [Math.round(width * scale), Math.round(height * scale)];
  const reduced = scale < 1 ? `, reduced to ${across} x ${down}` : "";
  if (Math.min(across, down) < LEAST_SIDE) {
    throw new RangeError(
      `The picture has ${width} x ${height} pixels${reduced}; the network needs ${LEAST_SIDE} x ${LEAST_SIDE} or more.`,
    );
  }
  canvas.width = across; // clears it
  canvas.height = down;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, across, down);
  let pixels = context.getImageData(0, 0, across, down);
  const notes = reduced ? [`Reduced from ${width} x ${height} to ${across} x ${down} pixels.`] : [];
  if (!opaque(pixels.data)) {
    context.globalCompositeOperation = "destination-over";
    context.fillRect(0, 0, across, down);
    pixels = context.getImageData(0, 0, across, down);
    notes.push("Transparent parts were painted on black.");
  }
  return { pixels, notes };
}

function opaque(data) {
  for (let i = 3; i < data.length; i += 4) {
    if (data[i] !== 255) {
      return false;
    }
  }
  return true;
}
