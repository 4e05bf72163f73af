// Stands in for the header of this name in the CUDA toolkit.
#include "simt.h"
