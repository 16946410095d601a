! The client of neuroscale-couple for Fortran 2008: `neuroscale/client.h` as interfaces, and four helpers for its texts.
module neuroscale
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: error_unit
  implicit none

  ! nsc_answer, without the parts that are not asked for
  type, bind(c) :: nsc_answer
    integer(c_size_t) :: struct_size = 0
    type(c_ptr) :: outputs = c_null_ptr, tangent = c_null_ptr, error = c_null_ptr
    type(c_ptr) :: source = c_null_ptr, reason = c_null_ptr
    integer(c_int64_t) :: model_version = -1
  end type nsc_answer

  interface
    integer(c_int) function nsc_open(path, channel, options, session, why, why_size) bind(c)
      import
      character(kind=c_char), intent(in) :: path(*), channel(*)
      type(c_ptr), value :: options
      type(c_ptr), intent(out) :: session
      character(kind=c_char), intent(out) :: why(*)
      integer(c_size_t), value :: why_size
    end function nsc_open
    integer(c_int) function nsc_points(session, n, ids, dimension, coordinates, volumes) bind(c)
      import
      type(c_ptr), value :: session, volumes
      integer(c_size_t), value :: n
      integer(c_int64_t), intent(in) :: ids(*)
      integer(c_int), value :: dimension
      real(c_double), intent(in) :: coordinates(*)
    end function nsc_points
    integer(c_int) function nsc_input(session, name, components, names, unit) bind(c)
      import
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*), unit(*)
      integer(c_int), value :: components
      type(c_ptr), intent(in) :: names(*)
    end function nsc_input
    integer(c_int) function nsc_output(session, name, components, names, unit) bind(c)
      import
      type(c_ptr), value :: session
      character(kind=c_char), intent(in) :: name(*), unit(*)
      integer(c_int), value :: components
      type(c_ptr), intent(in) :: names(*)
    end function nsc_output
    integer(c_int) function nsc_connect(session) bind(c)
      import
      type(c_ptr), value :: session
    end function nsc_connect
    integer(c_int) function nsc_exchange(session, time, dt, iteration, inputs, answer) bind(c)
      import
      type(c_ptr), value :: session
      real(c_double), value :: time, dt
      integer(c_int), value :: iteration
      type(c_ptr), intent(in) :: inputs(*)
      type(nsc_answer), intent(inout) :: answer
    end function nsc_exchange
    integer(c_int) function nsc_commit(session) bind(c)
      import
      type(c_ptr), value :: session
    end function nsc_commit
    integer(c_int) function nsc_finish(session) bind(c)
      import
      type(c_ptr), value :: session
    end function nsc_finish
    subroutine nsc_close(session) bind(c)
      import
      type(c_ptr), intent(inout) :: session
    end subroutine nsc_close
    type(c_ptr) function nsc_last_error(session) bind(c)
      import
      type(c_ptr), value :: session
    end function nsc_last_error
  end interface

contains

  ! Open a session with default options; stop with the reason if there is none.
  type(c_ptr) function opened(path, channel) result(session)
    character(len=*), intent(in) :: path, channel
    character(kind=c_char) :: why(1024)
    if (nsc_open(path // c_null_char, channel // c_null_char, c_null_ptr, session, why, 1024_c_size_t) /= 0) &
      call fail(why)
  end function opened

  ! Stop with the session's last error unless the call went well.
  subroutine check(session, status)
    type(c_ptr), intent(in) :: session
    integer(c_int), intent(in) :: status
    character(kind=c_char), pointer :: text(:)
    if (status == 0) return
    call c_f_pointer(nsc_last_error(session), text, [4096])
    call fail(text)
  end subroutine check

  subroutine fail(text)
    character(kind=c_char), intent(in) :: text(:)
    integer :: i
    do i = 1, size(text)
      if (text(i) == c_null_char) exit
      write (error_unit, '(a)', advance='no') text(i)
    end do
    write (error_unit, *)
    stop 1
  end subroutine fail

  ! Declare a field by nsc_input or nsc_output; its components are words of one text, '' for a scalar.
  integer(c_int) function declare(how, session, name, components, unit) result(status)
    procedure(nsc_input) :: how
    type(c_ptr), intent(in) :: session
    character(len=*), intent(in) :: name, components, unit
    character(kind=c_char, len=len(components) + 1), target :: letters
    type(c_ptr) :: names(len(components) + 1)
    integer :: i, count
    letters = components // c_null_char
    names(1) = c_loc(letters)
    count = 1
    do i = 1, len(components)
      if (letters(i:i) /= ' ') cycle
      letters(i:i) = c_null_char
      count = count + 1
      names(count) = c_loc(letters(i + 1:i + 1))
    end do
    status = how(session, name // c_null_char, int(count, c_int), names, unit // c_null_char)
  end function declare

  ! Exchange fields by their addresses; the outputs alone come back.
  integer(c_int) function exchange(session, time, dt, iteration, inputs, outputs) result(status)
    type(c_ptr), intent(in) :: session, inputs(:)
    type(c_ptr), intent(in), target :: outputs(:)
    real(c_double), intent(in) :: time, dt
    integer, intent(in) :: iteration
    type(nsc_answer) :: answer
    answer%struct_size = c_sizeof(answer)
    answer%outputs = c_loc(outputs)
    status = nsc_exchange(session, time, dt, int(iteration, c_int), inputs, answer)
  end function exchange

end module neuroscale
