/* The functions of throws.h in another version. */
#include "throws.h"
