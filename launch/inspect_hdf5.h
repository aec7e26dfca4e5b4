/* SPDX-License-Identifier: Apache-2.0
 * Lists any HDF5 file: datasets with type, shape and bytes, attributes with their values. Not collective.
 */
#ifndef GLOWQ_LAUNCH_INSPECT_HDF5_H
#define GLOWQ_LAUNCH_INSPECT_HDF5_H

/* On stdout, as text or as one JSON object. ERR_IO when the file can't be opened, ERR_FORMAT when it isn't sound HDF5.
 */
int inspect_hdf5(const char *path, int as_json);

#endif
